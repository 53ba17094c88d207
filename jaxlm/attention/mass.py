"""Attention that each token of a sequence receives, through `pallas_kernels.column_mass`, for rules that the kernels support."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxlm.attention import flash
from jaxlm.attention.attend import by_key_head, slot_logits
from jaxlm.attention.distance import alibi_slopes
from jaxlm.attention.rule import AttentionRule
from pallas_kernels import column_mass
from pallas_kernels.column_mass import Mass

if TYPE_CHECKING:
  from jaxtyping import Array, Float


def knows(rule: AttentionRule) -> bool:
  """Returns whether the kernels support the rule, for queries and keys in order of position."""
  return flash.knows(rule) and not rule.prefix


def is_default(rule: AttentionRule, length: int) -> bool:
  """Returns whether to use the kernels for a sequence: on accelerators. A CPU sums the weights of pieces, which is exact."""
  return rule.implementation != 'xla' and flash.has_kernels() and length >= flash.SHORTEST and knows(rule)


def received(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  rule: AttentionRule,
  factors: Float[Array, 'B T'] | None = None,
  **options,
) -> Mass:
  """Returns the sums of attention weights of a sequence. `options` are keyword arguments of `column_mass`."""
  B, T, N, _ = q.shape
  slopes = alibi_slopes(N) if rule.position == 'alibi' else None
  slot = slot_logits(by_key_head(q, k.shape[2]), T, rule).reshape(B, N, T) if rule.has_slot else None
  return column_mass(
    q, k, operation=rule.operation, causal=rule.causal, window=rule.window, scale=rule.scale, softcap=rule.softcap,
    bias=rule.offset, alibi_slopes=slopes, slot_logits=slot, factors=factors, **options,
  )  # fmt: skip
