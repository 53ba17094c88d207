"""Where a step runs: pmapped over the local devices, or jitted over a mesh when the model or the hosts ask for it.

A `Layout` hides the difference: it places states and batches, and compiles a step. The partitioner and the collectives
are XLA's.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from jaxlm.models import sharding
from trainers.config import ConfigError, DistributedConfig, MeshConfig
from trainers.step import data_parallel


def initialize(config: DistributedConfig) -> None:
  """Joins the other hosts, if the config names any. Must run before anything asks JAX for its devices."""
  if config.coordinator is None and not config.initialize:
    return
  if jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id)
  except ValueError as e:
    raise ConfigError(
      f'The environment does not say where the other hosts are ({e}). Pass --distributed.coordinator HOST:PORT '
      '--distributed.num-processes N --distributed.process-id I on each.'
    ) from e


def on_first_host(action: Callable[[], Any], error: type[Exception]) -> Any:
  """Runs `action` in process 0 while the others wait; returns its result there and None elsewhere.

  Raises what `action` raises in process 0, and `error` everywhere else: no host is left waiting for one that has failed.
  """
  result = raised = None
  if jax.process_index() == 0:
    try:
      result = action()
    except Exception as e:
      raised = e
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(raised is not None)))
    if failed and raised is None:
      raise error('Process 0 could not open the run; its message says why.')
  if raised is not None:
    raise raised
  return result


def all_hosts(good: bool) -> bool:
  """Whether `good` holds in every process; they wait for each other."""
  if jax.process_count() == 1:
    return good
  from jax.experimental import multihost_utils

  return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


@dataclasses.dataclass(frozen=True)
class Layout:
  """The devices, how a state and a batch lie on them, and how a step is compiled for them."""

  mesh: Mesh
  mapped: bool
  """pmap over the local devices instead of jit over the mesh; the state is replicated."""

  @property
  def batch_spec(self) -> PartitionSpec:
    return PartitionSpec('data' if self.mapped else ('data', 'fsdp'))

  @property
  def batch_parts(self) -> int:
    """Number of devices (or groups of devices) that get different rows."""
    return self.mesh.shape['data'] * self.mesh.shape.get('fsdp', 1)

  def check_batch_size(self, batch_size: int, accumulate: int = 1) -> None:
    """Raises ConfigError, naming the nearest sizes that work, if the rows cannot be shared out evenly."""
    unit = self.batch_parts * accumulate
    if batch_size % unit:
      lower, upper = batch_size // unit * unit, -(-batch_size // unit) * unit
      near = f'{lower} or {upper}' if lower else f'{upper}'
      what = f'{self.batch_parts} devices' + (f' x {accumulate} micro-batches' if accumulate > 1 else '')
      raise ConfigError(f'A batch of {batch_size} rows cannot be shared by {what}; the nearest that can: {near}.')

  def shardings(self, tree: Any) -> Any:
    """How a tree of parameters (or a state that holds some) lies on the devices; leaves may be abstract."""
    if self.mapped:
      return jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree)
    return sharding.tree_shardings(tree, self.mesh)

  def abstract(self, init: Callable) -> Any:
    """Returns what `init()` would, as shapes with shardings: what a checkpoint is restored into."""
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings(shapes))

  def create(self, init: Callable, *args: Any) -> Any:
    """Returns `init(*args)`, computed straight into place: no device ever holds more than its part."""
    return jax.jit(init, out_shardings=self.shardings(jax.eval_shape(init, *args)))(*args)

  def place(self, tree: Any) -> Any:
    """Returns a tree of arrays on the devices, spread as parameters of these names are."""
    return jax.device_put(tree, self.shardings(tree))

  def local(self, tree: Any) -> Any:
    """Returns a tree on one device where every device holds all of it, without a copy; otherwise the tree as it is."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree) if self.mapped else tree

  def compile(self, train_step: Callable) -> Callable:
    """Returns step(state, batch, frozen=()) for states from `create`, batches from `put` and frozen arrays from `place`; the
    state is donated."""
    if self.mapped:
      return data_parallel(train_step)

    def step(state, batch, frozen=()):
      new, metrics = train_step(state, batch, frozen)
      # Without this XLA may choose another layout for the result, and the next call would compile again.
      return jax.lax.with_sharding_constraint(new, self.shardings(new)), metrics

    return jax.jit(step, donate_argnums=0)

  def rows(self, batch_size: int) -> slice:
    """Rows of the batch that this process has to read."""
    indices = NamedSharding(self.mesh, self.batch_spec).addressable_devices_indices_map((batch_size,))
    spans = [index[0].indices(batch_size) for index in indices.values()]
    return slice(min(s[0] for s in spans), max(s[1] for s in spans))

  def put(self, batch: dict[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """Places this process's `rows` of a batch for `compile`d steps. A batch with fewer than batch_size rows has its part of them."""
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
    # The mesh that pmap makes for its axis: a state that lies on another one would compile the step twice.
    return Layout(Mesh(np.array(devices), ('data',)), mapped=True)
  mesh = sharding.make_mesh(data=len(devices) // need, fsdp=config.fsdp, tensor=config.tensor, devices=devices)
  return Layout(mesh, mapped=False)
