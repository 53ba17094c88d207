"""Attention of a whole sequence through `pallas_kernels.flash_attention`, on accelerators, for rules that the kernels support.

XLA's partitioner does not split kernels, so they are used only in programs for one device: in a process with a single device,
and in programs that run on each device separately (`on_each_device`), such as a pmapped training step.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import TYPE_CHECKING

import jax

from jaxlm.attention.distance import alibi_slopes
from jaxlm.attention.rule import AttentionRule
from pallas_kernels import flash_attention, platforms

if TYPE_CHECKING:
  from jaxtyping import Array, Float

SHORTEST = 128  # In tokens; for shorter sequences the weights of all heads take little memory.
SHARED = -1  # Segment number of a position that all segments share.
_each_device = contextvars.ContextVar('each_device', default=False)


@contextlib.contextmanager
def on_each_device():
  """Context for tracing a program that runs on each device separately, such as a pmapped step."""
  token = _each_device.set(True)
  try:
    yield
  finally:
    _each_device.reset(token)


def on_one_device() -> bool:
  """Returns whether the program that is traced is for one device, so that it may have kernels."""
  return _each_device.get() or jax.device_count() == 1


def knows(rule: AttentionRule) -> bool:
  """Returns whether the kernels support the rule, for queries and keys in order of position."""
  plain = rule.power == rule.row_sum == 1.0 and not rule.dropout and not rule.position.startswith('relative')
  return plain and rule.operation in ('softmax', 'sigmoid')


def is_default(rule: AttentionRule, q: Float[Array, 'B T N H']) -> bool:
  """Returns whether to use the kernels for a sequence. float32 does not use them, because its users expect exact numbers."""
  return has_kernels() and q.dtype != 'float32' and q.shape[1] >= SHORTEST and knows(rule)


def has_kernels() -> bool:
  """Returns whether the program that is traced is for an accelerator with kernels and for one device, so that it may have kernels."""
  accelerator = jax.default_backend() in ('gpu', 'tpu') and not platforms.too_old(jax.devices())
  return accelerator and on_one_device()


def attend(
  q: Float[Array, 'B T N H'], k: Float[Array, 'B T K H'], v: Float[Array, 'B T K H'], rule: AttentionRule, **options
) -> Float[Array, 'B T N H']:
  """Returns attention of a whole sequence under the rule. `options` are keyword arguments of `flash_attention`."""
  return flash_attention(
    q, k, v, operation=rule.operation, causal=rule.causal, window=rule.window, prefix=min(rule.prefix, k.shape[1]),
    scale=rule.scale, softcap=rule.softcap, bias=rule.offset,
    alibi_slopes=alibi_slopes(q.shape[2]) if rule.position == 'alibi' else None,
    slot_logit=rule.slot_logit, slot_key=rule.slot_key, slot_value=rule.slot_value, **options,
  )  # fmt: skip
