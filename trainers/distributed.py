"""Runs a step on the devices: with pmap over the local devices, or with jit over a mesh for split models and several hosts.

A `Layout` hides the difference: it places states and batches, and compiles a step. XLA partitions the program and adds the
collectives.
"""

from collections.abc import Callable
import dataclasses
import functools
import itertools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from jaxlm.attention import flash
from jaxlm.models import sharding
from trainers.config import ConfigError, DistributedConfig, MeshConfig
from trainers.step import data_parallel

LONGEST = 30 * 24 * 3600
"""Seconds that other hosts wait for the first one. If its process ends before that, they end as well."""
_actions = itertools.count()  # A name for each wait: all hosts wait equally often.


def initialize(config: DistributedConfig) -> None:
  """Connects to the other hosts, if the config asks for it. Must run before JAX's devices are used."""
  if config.coordinator is None and not config.initialize:
    return
  if jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
  except ValueError as e:
    raise ConfigError(
      f'The other hosts cannot be found from the environment ({e}). Pass --distributed.coordinator HOST:PORT '
      '--distributed.num-processes N --distributed.process-id I on each.'
    ) from e


def on_first_host(action: Callable[[], Any], error: type[Exception]) -> Any:
  """Runs `action` in process 0 while the others wait. Returns its result in process 0, and None in the others.

  If `action` raises, process 0 raises the same error and the others raise `error`, so that no process waits for ever.
  """
  result = raised = None
  if jax.process_index() == 0:
    try:
      result = action()
    except Exception as e:
      raised = e
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    from orbax.checkpoint import multihost

    # A collective of the devices gives up after half a minute on a CPU, and an action may take hours.
    processes = set(range(jax.process_count()))
    multihost.sync_global_processes(f'on_first_host_{next(_actions)}', timeout=LONGEST, processes=processes)
    failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(raised is not None)))
    if failed and raised is None:
      raise error('Process 0 failed; its message says why.')
  if raised is not None:
    raise raised
  return result


def all_hosts(good: bool) -> bool:
  """Returns whether `good` is true in every process. All processes must call this, and wait for each other."""
  if jax.process_count() == 1:
    return good
  from jax.experimental import multihost_utils

  return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


@dataclasses.dataclass(frozen=True)
class Layout:
  """The devices, and how states and batches are placed and steps compiled for them."""

  mesh: Mesh
  mapped: bool
  """Whether steps run with pmap over the local devices and a replicated state, not with jit over the mesh."""

  @property
  def batch_spec(self) -> PartitionSpec:
    return PartitionSpec('data' if self.mapped else ('data', 'fsdp'))

  @property
  def batch_parts(self) -> int:
    """Number of devices (or groups of devices) that get different rows."""
    return self.mesh.shape['data'] * self.mesh.shape.get('fsdp', 1)

  def check_batch_size(self, batch_size: int, accumulate: int = 1) -> None:
    """Raises ConfigError, naming the nearest sizes that work, if the rows cannot be divided evenly."""
    unit = self.batch_parts * accumulate
    if batch_size % unit:
      lower, upper = batch_size // unit * unit, -(-batch_size // unit) * unit
      near = f'{lower} or {upper}' if lower else f'{upper}'
      what = f'{self.batch_parts} devices' + (f' x {accumulate} micro-batches' if accumulate > 1 else '')
      raise ConfigError(f'A batch of {batch_size} rows cannot be shared by {what}; the nearest that can: {near}.')

  def shardings(self, tree: Any) -> Any:
    """Returns the shardings of a tree of parameters, or of a state that holds them; leaves may be abstract."""
    if self.mapped:
      return jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree)
    return sharding.tree_shardings(tree, self.mesh)

  def abstract(self, init: Callable) -> Any:
    """Returns the shapes and shardings of `init()`, into which a checkpoint is restored."""
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings(shapes))

  def create(self, init: Callable, *args: Any) -> Any:
    """Returns `init(*args)`, computed with its shardings, so that no device ever holds more than its part."""
    return jax.jit(init, out_shardings=self.shardings(jax.eval_shape(init, *args)))(*args)

  def place(self, tree: Any) -> Any:
    """Returns a tree of arrays on the devices, sharded like parameters of the same names."""
    return jax.device_put(tree, self.shardings(tree))

  def local(self, tree: Any) -> Any:
    """Returns the first device's arrays, without a copy, if every device holds the whole tree; otherwise the tree unchanged."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree) if self.mapped else tree

  def compile(self, train_step: Callable) -> Callable:
    """Returns step(state, batch, frozen=()) for states from `create`, batches from `put` and frozen arrays from `place`; the
    state is donated."""
    if self.mapped:
      return data_parallel(train_step)

    def step(state, batch, frozen=()):
      new, metrics = train_step(state, batch, frozen)
      # Without the constraint XLA may choose another sharding for the result, and the next call would compile again.
      return jax.lax.with_sharding_constraint(new, self.shardings(new)), metrics

    return self.jit(step, donate_argnums=0)

  def jit(self, function: Callable, **options: Any) -> Callable:
    """Returns `jax.jit(function, **options)`, whose attention may run kernels on each device of the mesh."""

    @functools.wraps(function)
    def traced(*args):
      with flash.on_mesh(self.mesh):
        return function(*args)

    return jax.jit(traced, **options)

  def rows(self, batch_size: int) -> slice:
    """Returns the rows of the batch that this process must read."""
    indices = NamedSharding(self.mesh, self.batch_spec).addressable_devices_indices_map((batch_size,))
    spans = [index[0].indices(batch_size) for index in indices.values()]
    return slice(min(s[0] for s in spans), max(s[1] for s in spans))

  def put(self, batch: dict[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """Places this process's `rows` of a batch as the argument of a step from `compile`.

    A batch may have fewer than `batch_size` rows; then it holds this process's part of those.
    """
    if self.mapped:
      n = self.batch_parts
      return jax.tree.map(lambda x: np.asarray(x).reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
    return self.put_whole(batch, batch_size)

  def put_whole(self, batch: dict[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """Places this process's `rows` of a batch as ordinary [B, ...] arrays split over the mesh; rows as for `put`."""
    span = self.rows(batch_size)

    def place(x):
      size = len(x) * batch_size // (span.stop - span.start)
      first = span.start * size // batch_size
      shape = (size, *x.shape[1:])

      def part(index):
        start, stop, _ = index[0].indices(size)
        return x[start - first : stop - first]

      return jax.make_array_from_callback(shape, NamedSharding(self.mesh, self.batch_spec), part)

    return jax.tree.map(place, batch)


def make_layout(config: MeshConfig, devices: list[jax.Device] | None = None) -> Layout:
  """Returns the layout on all devices of all hosts, or on `devices`.

  Raises:
    ConfigError: the mesh does not divide the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  need = config.fsdp * config.tensor
  if len(devices) % need:
    fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    raise ConfigError(
      f'mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} = {need} does not divide {len(devices)} devices; '
      f'products that do: {fits}.'
    )
  if need == 1 and len(devices) == jax.local_device_count() and jax.process_count() == 1:
    # This is the mesh that pmap makes for its axis. With a state on another mesh, the step would be compiled twice.
    return Layout(Mesh(np.array(devices), ('data',)), mapped=True)
  mesh = sharding.make_mesh(data=len(devices) // need, fsdp=config.fsdp, tensor=config.tensor, devices=devices)
  return Layout(mesh, mapped=False)
