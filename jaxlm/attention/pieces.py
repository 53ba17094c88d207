"""Attention of a long sequence, a few queries at a time, so that the [N, T, T] weights never exist as a whole.

  o_t = sum_s w_ts v_s        for every rule without dropout, by `jaxlm.attention.attend`

A piece has C queries: on a CPU as many as its cache has room for, elsewhere an eighth of the sequence. The backward pass computes its
weights again (`jax.checkpoint`), so that only q, k and v are kept. For a causal rule, the pieces are in eight groups, each of which
reads the keys up to its end: 9/16 of the products.

Letters: C queries of a piece, P pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxlm.attention import banded
from jaxlm.attention.attend import attend as attend_all
from jaxlm.attention.attend import heads_first
from jaxlm.attention.rule import AttentionRule

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

SHORTEST = 1024  # In tokens, on a CPU; see `is_default`.
SHORTEST_ELSEWHERE = 4096
PIECE_WEIGHTS = 2**19  # Weights of a piece, over all rows and heads: 2 MiB, which the cache of a CPU holds.
FEWEST = 64  # Queries of a piece at least: each piece adds to the gradients of all its keys.
GROUPS = 8


def knows(rule: AttentionRule) -> bool:
  """Returns whether pieces compute the rule: not dropout, whose mask would differ."""
  return not rule.dropout


def is_default(rule: AttentionRule, length: int) -> bool:
  """Returns whether to compute a training sequence in pieces: on a CPU from 1024 tokens on, elsewhere from 4096.

  Speed of the dense form and of pieces on two CPU cores, 4 heads of 64, one causal float32 sequence, in milliseconds:

    T      forward        forward and backward
    512    2.5 / 2.3      14 / 17
    1024   28 / 10        109 / 53
    2048   108 / 22       830 / 177

  Accelerators were not measured. `jaxlm.attention.flash` serves them where it can; in float32, and in programs for several devices, the
  weights of longer sequences would not fit into their memory.
  """
  least = SHORTEST if jax.default_backend() == 'cpu' else SHORTEST_ELSEWHERE
  return length >= least and knows(rule)


def beat_bands(rule: AttentionRule, length: int) -> bool:
  """Returns whether pieces are faster than `banded.attend` for a rule with a window.

  Speed of bands and of pieces in a forward and backward pass, setting as above, 2048 tokens: 18 / 66 ms with a window of 32,
  31 / 44 with one of 128 and 390 / 180 with one of 512.
  """
  return not banded.knows(rule) or 16 * rule.window > length


def attend(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  rule: AttentionRule,
  mask: Callable[[Int[Array, ' C'], Int[Array, ' S']], Bool[Array, 'B C S']] | None = None,
) -> Float[Array, 'B T N H']:
  """Returns the attention of a whole sequence.

  Args:
    q, k, v: queries, keys and values in order of position; N is a multiple of K.
    rule: any rule without dropout.
    mask: maps indices of queries and keys to which keys each query may see, in addition to the rule.
  """
  B, T, N, _ = q.shape
  keys, values = heads_first(k), heads_first(v)
  C = min(T, max(FEWEST, PIECE_WEIGHTS // (B * N * T))) if jax.default_backend() == 'cpu' else -(-T // GROUPS)
  P = -(-T // C)
  q_PBCNH = jnp.pad(q, ((0, 0), (0, P * C - T), (0, 0), (0, 0))).reshape(B, P, C, *q.shape[2:]).swapaxes(0, 1)
  index_PC = jnp.arange(P * C).reshape(P, C)
  size = -(-P // GROUPS) if rule.causal else P
  out = []
  for first in range(0, P, size):
    start, stop = _keys_of(rule, first * C, (first + size) * C, T)

    @jax.checkpoint
    def piece(q_BCNH, index_C, keys, values, start=start):
      key_S = start + jnp.arange(keys.shape[2])
      seen_BCS = None if mask is None else mask(jnp.minimum(index_C, T - 1), key_S)
      return attend_all(q_BCNH, keys, values, index_C[None], key_S[None], rule, seen_BCS)

    seen = keys[:, :, start:stop], values[:, :, start:stop]
    group = slice(first, first + size)
    out.append(jax.lax.map(lambda x, piece=piece, seen=seen: piece(*x, *seen), (q_PBCNH[group], index_PC[group])))
  out_PBCNH = jnp.concatenate(out)
  return out_PBCNH.swapaxes(0, 1).reshape(B, P * C, N, -1)[:, :T]


def _keys_of(rule: AttentionRule, first: int, end: int, T: int) -> tuple[int, int]:
  """Returns the range of keys that queries first .. end - 1 may see."""
  if not rule.causal:
    return 0, T
  start = 0 if rule.window is None or rule.prefix else max(0, first - rule.window + 1)
  return start, min(T, max(end, rule.prefix))
