"""Attention of a whole sequence through `pallas_kernels.flash_attention`, on accelerators, where the kernels know the rule.

Kernels are not split by XLA's partitioner, so they are for programs of one device: those of a process that has only one, and
those that run on each device by themselves (`on_each_device`), as a pmapped training step does.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import TYPE_CHECKING

import jax

from jaxlm.attention.distance import alibi_slopes
from jaxlm.attention.rule import AttentionRule
from pallas_kernels import flash_attention

if TYPE_CHECKING:
  from jaxtyping import Array, Float

SHORTEST = 128  # Tokens; below, the weights of all heads are small.
_each_device = contextvars.ContextVar('each_device', default=False)


@contextlib.contextmanager
def on_each_device():
  """What is traced within runs on each device by itself."""
  token = _each_device.set(True)
  try:
    yield
  finally:
    _each_device.reset(token)


def knows(rule: AttentionRule) -> bool:
  """Whether the kernels compute what the rule says, of queries and keys in order."""
  plain = rule.power == rule.row_sum == 1.0 and rule.softcap is None and not rule.prefix and not rule.has_slot
  return (
    plain and not rule.dropout and rule.operation in ('softmax', 'sigmoid') and not rule.position.startswith('relative')
  )


def is_default(rule: AttentionRule, q: Float[Array, 'B T N H']) -> bool:
  """Whether a sequence's attention should go through the kernels here. float32 does not: its users want exact numbers."""
  alone = _each_device.get() or jax.device_count() == 1
  accelerator = jax.default_backend() in ('gpu', 'tpu')
  return accelerator and alone and q.dtype != 'float32' and q.shape[1] >= SHORTEST and knows(rule)


def attend(
  q: Float[Array, 'B T N H'], k: Float[Array, 'B T K H'], v: Float[Array, 'B T K H'], rule: AttentionRule, **options
) -> Float[Array, 'B T N H']:
  """Attention of a sequence from its first token on, causal if the rule is. options: of `flash_attention`."""
  slopes = alibi_slopes(q.shape[2]) if rule.position == 'alibi' else None
  return flash_attention(
    q, k, v, operation=rule.operation, causal=rule.causal, window=rule.window, scale=rule.scale, bias=rule.offset,
    alibi_slopes=slopes, **options,
  )  # fmt: skip
