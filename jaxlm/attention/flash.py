"""Attention of a whole sequence through `pallas_kernels.flash_attention`, on accelerators, for rules that the kernels support.

XLA's partitioner does not split kernels. So they are used in programs for one device: in a process with a single device, and in programs
that run on each device separately (`on_each_device`), such as a pmapped training step. In programs for a mesh of devices (`on_mesh`), each
device runs the kernels on its rows and heads. Trainers and decoders enter `on_mesh`; do so for programs of your own.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxlm.attention.distance import alibi_slopes
from jaxlm.attention.rule import AttentionRule, layer_rule
from jaxlm.config import ModelConfig
from pallas_kernels import flash_attention, platforms

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

SHORTEST = 128  # In tokens; for shorter sequences the weights of all heads take little memory.
SHARED = -1  # Segment number of a position that all segments share.
ROWS, HEADS = ('data', 'fsdp'), ('tensor',)
"""Axes of a mesh that split the rows of a batch, and the heads."""
_each_device = contextvars.ContextVar('each_device', default=False)
_mesh = contextvars.ContextVar('mesh', default=None)


@contextlib.contextmanager
def on_each_device():
  """Context for tracing a program that runs on each device separately, such as a pmapped step."""
  token = _each_device.set(True)
  try:
    yield
  finally:
    _each_device.reset(token)


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None):
  """Context for tracing a program for a mesh as `jaxlm.models.sharding` makes it; None, and a mesh of one device, change nothing.

  Some argument of the program must be on the mesh: attention names its axes, and JAX takes its devices from the arguments.
  """
  token = _mesh.set(mesh if mesh is not None and mesh.size > 1 else None)
  try:
    yield
  finally:
    _mesh.reset(token)


def on_one_device() -> bool:
  """Returns whether the program that is traced is for one device, so that it may have kernels."""
  return _each_device.get() or jax.device_count() == 1


def knows(rule: AttentionRule) -> bool:
  """Returns whether the kernels support the rule, for queries and keys in order of position."""
  plain = rule.power == rule.row_sum == 1.0 and not rule.dropout and not rule.position.startswith('relative')
  return plain and rule.operation in ('softmax', 'sigmoid')


def is_default(rule: AttentionRule, q: Float[Array, 'B T N H']) -> bool:
  """Returns whether to use the kernels for a sequence. By default float32 does not use them: its users expect exact numbers.

  Raises:
    ValueError: the rule says that kernels compute it, and they do not know it.
  """
  if rule.implementation != 'default':
    if asked := rule.implementation == 'pallas':
      _check(rule)
    return asked
  where = has_kernels() or _has_accelerator() and _mesh.get() is not None
  return where and q.dtype != 'float32' and q.shape[1] >= SHORTEST and knows(rule)


def check(config: ModelConfig) -> None:
  """Checks that a model which asks for kernels can have them.

  Raises:
    ValueError: the kernels do not know its attention, or this process has no device for them.
  """
  if config.implementation != 'pallas':
    return
  for layer in range(config.num_layers):
    _check(layer_rule(config, layer).replace(dropout=config.dropout.attention))
  if not _has_accelerator():
    raise ValueError(
      f"implementation='pallas' runs on TPUs, and on NVIDIA GPUs from Ampere on, and this process computes on "
      f"{jax.devices()[0].device_kind}. Leave it out, or take 'xla'."
    )


def _check(rule: AttentionRule) -> None:
  if not knows(rule):
    raise ValueError(
      f"implementation='pallas': the kernels know softmax and sigmoid without relative positions, power, row sum and dropout, not "
      f'{rule.operation} with position={rule.position!r}, power={rule.power}, row_sum={rule.row_sum} and dropout={rule.dropout}. Leave it '
      "out, or take 'xla'."
    )


def has_kernels() -> bool:
  """Returns whether the program that is traced is for an accelerator with kernels and for one device, so that it may have kernels."""
  return _has_accelerator() and on_one_device()


def _has_accelerator() -> bool:
  return jax.default_backend() in ('gpu', 'tpu') and not platforms.too_old(jax.devices())


def attend(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  rule: AttentionRule,
  segments: Int[Array, 'B T'] | None = None,
  **options: Any,
) -> Float[Array, 'B T N H']:
  """Returns attention of a whole sequence under the rule.

  In a program of `on_mesh`, each device computes its rows and heads; if they cannot be shared evenly, it computes those of others too.

  Args:
    segments: int32, equal within a document.
    options: keyword arguments of `flash_attention`.
  """
  options |= dict(
    operation=rule.operation, causal=rule.causal, window=rule.window, prefix=min(rule.prefix, k.shape[1]), scale=rule.scale,
    softcap=rule.softcap, bias=rule.offset,
  )  # fmt: skip
  if rule.implementation == 'pallas':
    options |= {'implementation': 'pallas'}
  slopes = alibi_slopes(q.shape[2]) if rule.position == 'alibi' else None
  of_heads = dict(alibi_slopes=slopes, slot_logit=rule.slot_logit, slot_key=rule.slot_key, slot_value=rule.slot_value)
  call = lambda q, k, v, segments, of_heads: flash_attention(q, k, v, segments=segments, **of_heads, **options)
  if (mesh := _mesh.get()) is None:
    return call(q, k, v, segments, of_heads)
  rows, heads = _shared_by(mesh, ROWS, q.shape[0]), _shared_by(mesh, HEADS, k.shape[2])
  if not heads and (copies := _copies(mesh, q.shape[2], k.shape[2])) > 1:
    k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
    of_heads |= {
      n: x if x is None else jnp.repeat(x, copies, axis=0)
      for n, x in of_heads.items()
      if n in ('slot_key', 'slot_value')
    }
    heads = HEADS
  arrays, of_head = PartitionSpec(rows, None, heads), PartitionSpec(heads)
  # Without its devices: JAX takes the traced program for other meshes of this shape too.
  return jax.shard_map(
    call,
    mesh=mesh.abstract_mesh,
    in_specs=(arrays, arrays, arrays, PartitionSpec(rows), of_head),
    out_specs=arrays,
    check_vma=False,
  )(q, k, v, segments, of_heads)


def _shared_by(mesh: Mesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
  """Returns the axes of the mesh that split `size` rows or heads evenly. Along other axes, each device computes all."""
  found, parts = (), 1
  for axis in (axis for axis in axes if axis in mesh.shape):
    parts *= mesh.shape[axis]
    if size % parts:
      break
    found += (axis,)
  return found


def _copies(mesh: Mesh, num_heads: int, num_kv_heads: int) -> int:
  """Returns how many copies of the key heads the devices of `HEADS` can share evenly, each with query heads of its own; 1 if none."""
  parts = math.prod(mesh.shape.get(axis, 1) for axis in HEADS)
  return parts // num_kv_heads if parts % num_kv_heads == num_heads % parts == 0 else 1
