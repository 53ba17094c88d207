"""Attention of a whole sequence under a sliding window of w tokens, in three ways with the same result.

  o_t = sum_{0 <= t-s < w} w_ts v_s

dense    all T x T products, of which those outside the band are masked: the definition
shifted  keys and values are shifted by 0 .. w - 1 tokens, and each query multiplies the w that stand at its place: T w products
chunked  blocks of c queries read their own keys and the w - 1 before them, which lie in the block before: T (c + w - 1) products

All of them compute weights by `jaxlm.attention.attend`, so that operations, position schemes by distance and sinks are those of
the rule. Letters: w window, c tokens of a block, C blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from jaxlm.attention.attend import attend as attend_all
from jaxlm.attention.attend import attend_by, heads_first
from jaxlm.attention.rule import AttentionRule

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

Implementation = Literal['dense', 'shifted', 'chunked']
BLOCK = 32  # Fewest queries of a block: with fewer, the products are too small to be fast.


def attend(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  rule: AttentionRule,
  segments: Int[Array, 'B T'] | None = None,
  implementation: Implementation | None = None,
) -> Float[Array, 'B T N H']:
  """Returns the attention of a whole sequence, each token over its window and its own document.

  Args:
    q, k, v: queries, keys and values in order of position; N is a multiple of K.
    rule: a causal rule with a window, no prefix and no dropout, which `knows` tells.
    segments: int32, equal within a document; None: one document.
    implementation: None takes the fastest as measured; see `fastest`.

  Raises:
    ValueError: 'shifted' or 'chunked' for a rule that they do not know, or an unknown implementation.
  """
  implementation = implementation or fastest(rule, q.shape[1])
  if implementation not in WAYS:
    raise ValueError(f'{implementation=} must be one of {", ".join(WAYS)}, or None for the fastest.')
  if implementation != 'dense' and not knows(rule):
    raise ValueError(
      f'{implementation=} needs a causal rule with a window, without a prefix and dropout, not {rule.causal=}, '
      f"{rule.window=}, {rule.prefix=} and {rule.dropout=}: use 'dense'."
    )
  return WAYS[implementation](q, k, v, rule, segments)


def knows(rule: AttentionRule) -> bool:
  """Returns whether all three ways compute the rule. Dropout would draw other masks in each."""
  return rule.causal and rule.window is not None and not rule.prefix and not rule.dropout


def fastest(rule: AttentionRule, length: int) -> Implementation:
  """Returns what computes a sequence of `length` tokens: 'chunked' on a CPU where it has far fewer products, else 'dense'.

  Speed of float32 forward and backward passes on two CPU cores, 8 heads of 64, relative to dense (shifted / chunked):

    T     w = 2         w = 4        w = 16
    32    1.1 / 0.8     0.6 / 0.9    0.1 / 0.5
    128   2.3 / 1.7     1.0 / 1.6    0.2 / 0.9
    512   10.1 / 8.2    4.3 / 6.5    0.9 / 4.3

  With T = 2048 and w = 512, chunked is 2.2 times as fast. At the lengths of sentences the dense products win. Accelerators were
  not measured; `jaxlm.attention.flash` serves them.
  """
  if not knows(rule) or jax.default_backend() != 'cpu':
    return 'dense'
  # The speeds cross where dense has about two and a half times the products; large ones gain earlier.
  fewer = 2 if length >= 512 else 3
  return 'chunked' if length >= fewer * (max(rule.window, BLOCK) + rule.window - 1) else 'dense'


def _dense(q, k, v, rule, segments_BT=None):
  """The definition; it computes every rule."""
  index_1T = jnp.arange(q.shape[1])[None]
  mask_BTS = None if segments_BT is None else segments_BT[:, :, None] == segments_BT[:, None, :]
  return attend_all(q, heads_first(k), heads_first(v), index_1T, index_1T, rule, mask_BTS)


def _shifted(q, k, v, rule, segments_BT=None):
  (B, T, _, H), K, w = q.shape, k.shape[2], min(rule.window, q.shape[1])
  # Entry j of the last axis of products and weights is the key w - 1 - j tokens before the query, whichever the query is.
  before = range(w - 1, -1, -1)
  # What a roll brings around from the end is masked.
  shifts = lambda x_BTKH: [jnp.roll(heads_first(x_BTKH), d, axis=2).astype(jnp.float32) for d in before]
  keys, values = shifts(k), shifts(v)
  by_query = lambda x_BKRX: x_BKRX.reshape(B, K, -1, T, x_BKRX.shape[-1]).astype(jnp.float32)

  def score(q_BKRH):
    products = [(by_query(q_BKRH) * k_BKTH[:, :, None]).sum(-1) for k_BKTH in keys]
    return jnp.stack(products, axis=-1).reshape(B, K, -1, w)

  def mix(w_BKRS):
    w_BKGTS = by_query(w_BKRS.astype(v.dtype))
    out_BKGTH = sum(w_BKGTS[..., j, None] * v_BKTH[:, :, None] for j, v_BKTH in enumerate(values))
    return out_BKGTH.reshape(B, K, -1, H)

  source_TS = jnp.arange(T)[:, None] - jnp.asarray(before)[None]
  mask_BTS = (source_TS >= 0)[None]
  if segments_BT is not None:
    mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, jnp.maximum(source_TS, 0)])
  return attend_by(score, mix, q, K, jnp.full((1, T), w - 1), jnp.arange(w)[None], rule, mask_BTS)


def _chunked(q, k, v, rule, segments_BT=None):
  (B, T), w = q.shape[:2], min(rule.window, q.shape[1])
  c = max(w, BLOCK)
  C = -(-T // c)

  def blocks(x):
    """Returns [B, C, c, ...]; the last block is filled with zeros, which only queries that are cut off see."""
    return jnp.pad(x, ((0, 0), (0, C * c - T), *((0, 0),) * (x.ndim - 2))).reshape(B, C, c, *x.shape[2:])

  def seen(x):
    """Returns [B, C, c + w - 1, ...]: before each block the end of the one before, and zeros before the first."""
    x = blocks(x)
    end = jnp.pad(x[:, :-1, c - (w - 1) :], ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2)))
    return jnp.concatenate([end, x], axis=2)

  rows = lambda x: x.reshape(B * C, *x.shape[2:])
  key_S = jnp.arange(c + w - 1)
  there_CS = (jnp.arange(C) > 0)[:, None] | (key_S >= w - 1)[None]
  mask_BCTS = jnp.broadcast_to(there_CS[None, :, None], (B, C, 1, c + w - 1))
  if segments_BT is not None:
    mask_BCTS = mask_BCTS & (blocks(segments_BT)[..., None] == seen(segments_BT)[:, :, None])
  keys, values = heads_first(rows(seen(k))), heads_first(rows(seen(v)))
  query_T = w - 1 + jnp.arange(c)
  out = attend_all(rows(blocks(q)), keys, values, query_T[None], key_S[None], rule, rows(mask_BCTS))
  return out.reshape(B, C * c, *out.shape[2:])[:, :T]


WAYS = {'dense': _dense, 'shifted': _shifted, 'chunked': _chunked}
