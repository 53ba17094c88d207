"""Attention over a cache through `pallas_kernels.decode_attention`, where its kernel is the platform's fastest.

`pallas_kernels.decoding_calls.FASTEST` says where that is. Elsewhere, and on every CPU, caches attend by `jaxlm.attention.attend`.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxlm.attention import flash
from jaxlm.attention.attend import by_key_head, slot_logits
from jaxlm.attention.distance import alibi_slopes
from jaxlm.attention.rule import AttentionRule
from pallas_kernels import decode_attention
from pallas_kernels.decoding import Beside, Slot
from pallas_kernels.decoding_calls import FASTEST, Codes, cannot

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

LONGEST = 64  # In queries; with more, products and not the reading of the cache take the time.
_options = contextvars.ContextVar('options', default=None)


@contextlib.contextmanager
def through(**options):
  """Context for tracing programs whose caches use `decode_attention` with these options, whatever the platform.

  For example `through(implementation='pallas')`, to measure the kernel, or `through(interpret=True)`, to test it.
  """
  token = _options.set(options)
  try:
    yield
  finally:
    _options.reset(token)


def knows(rule: AttentionRule) -> bool:
  """Returns whether `decode_attention` computes the rule."""
  return flash.knows(rule) and not rule.prefix and (rule.causal or rule.window is None)


def is_default(rule: AttentionRule, q: Float[Array, 'B T N H']) -> bool:
  """Returns whether to use `decode_attention`. By default float32 does not use it: its users expect exact numbers."""
  if not knows(rule) or q.shape[1] > LONGEST:
    return False
  if _options.get() is not None:
    return True
  if rule.implementation == 'pallas':  # The kernel is for TPUs.
    return jax.default_backend() == 'tpu' and flash.on_one_device()
  platform = {'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend())
  fastest = rule.implementation == 'default' and FASTEST.get(platform) == 'pallas'
  return fastest and flash.on_one_device() and q.dtype == jnp.bfloat16


def attend(
  q: Float[Array, 'B T N H'],
  keys: Float[Array, 'B K S H'] | Codes,
  values: Float[Array, 'B K S H'] | Codes,
  positions: Int[Array, 'B T'],
  rule: AttentionRule,
  **where: Any,
) -> Float[Array, 'B T N H']:
  """Returns the attention of queries over a cache under a rule that `knows` tells.

  `where` are the arguments of `decode_attention` that say which tokens there are: key_positions, lengths, rows, beside, initial.
  """
  asked = {'implementation': 'xla' if cannot(q, keys, values) else 'pallas'} if rule.implementation == 'pallas' else {}
  options = _options.get() or asked
  return decode_attention(
    q, keys, values, positions=positions, operation=rule.operation, causal=rule.causal, window=rule.window, scale=rule.scale,
    bias=rule.offset, softcap=rule.softcap, alibi_slopes=alibi_slopes(q.shape[2]) if rule.position == 'alibi' else None,
    slot=slot_of(q, rule), **where, **options,
  )  # fmt: skip


def slot_of(q: Float[Array, 'B T N H'], rule: AttentionRule) -> Slot | None:
  """Returns the rule's extra key with its logits."""
  if not rule.has_slot:
    return None
  if rule.slot_key is None:
    return Slot(rule.slot_logit, rule.slot_value)
  B, T, N, _ = q.shape
  logits_BKGT = slot_logits(by_key_head(q, rule.slot_key.shape[0]), T, rule)
  return Slot(logits_BKGT.reshape(B, N, T).swapaxes(1, 2), rule.slot_value)


def tokens(
  keys: Float[Array, 'B M K H'],
  values: Float[Array, 'B M K H'],
  positions: Int[Array, 'B M'],
  seen: Bool[Array, 'B T M'] | None,
) -> Beside:
  """Returns new tokens as `decode_attention` takes them."""
  return Beside(keys.swapaxes(1, 2), values.swapaxes(1, 2), positions, seen)
