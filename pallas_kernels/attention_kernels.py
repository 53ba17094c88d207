"""What the kernels of flash attention compute for one pair of blocks, as functions on arrays: the sums over blocks are their state.

  S = cap(scale Q K^T) + bias - slope D      cap(x) = softcap tanh(x / softcap), if there is a softcap
  D = i + offset - j, |D| if not causal      offset = keys - queries: the last query is at the last key
  sigmoid   P = sigmoid(S)         dS = P (1 - P) dP
  softmax   P = exp(S - lse)       dS = P (dP - delta),  delta = rowsum(dO O)
  O = P V    dV = P^T dO    dP = dO V^T    dQ = scale (dS cap') K    dK = scale (dS cap')^T Q

See https://arxiv.org/abs/2409.04431, section on FlashSigmoid. Sigmoid needs neither lse nor delta: its forward pass is a plain sum
over key blocks. Sigmoid is not invariant to a shift of a row, so ALiBi cannot be simplified to slope * j as for softmax.

attention_streamed.py runs these functions on TPUs and attention_looped.py on GPUs. Blocks are two-dimensional: X queries by Y
keys, or Y by X in names with YX, which avoids transposes in dK and dV. Products have inputs of the arrays' dtype and accumulate in
float32.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from pallas_kernels.arithmetic import HIDDEN, dot, softcapped


@dataclasses.dataclass(frozen=True)
class Rule:
  """The static arguments of the kernels."""

  operation: str
  scale: float
  bias: float
  softcap: float | None
  alibi: bool
  causal: bool
  segments: bool  # Queries see only the keys of their own segment.
  before: int | None  # Number of keys that a query sees before its position; None: all.
  after: int | None  # Number of keys that a query sees after its position; None: all.
  prefix: int  # Number of first keys that every query sees.
  keys: int  # Number of keys; the rest of K and V is padding.
  offset: int  # Position of query 0 among the keys.
  group: int  # Query heads per key head.
  block_q: int
  block_k: int
  query_blocks: int  # Number of blocks of the padded queries.
  key_blocks: int  # Number of blocks of the padded keys.


class Pair(NamedTuple):
  """Where a pair of blocks stands."""

  first_query: Any  # Index of the block's first query.
  first_key: Any
  slope: Any  # ALiBi's slope of the head.
  segments: tuple[Any, Any] | None  # Segments of the rows [rows, 1] and of the columns [1, columns].


class Scores(NamedTuple):
  """Logits of a pair of blocks."""

  logits: Any
  visible: Any
  capped: Any  # tanh(x / softcap), or None without a softcap.


def forward_state(rule: Rule, H: int) -> list[tuple[tuple[int, int], float]]:
  """Returns (shape, first value) of each float32 sum of a block of queries: O, and for softmax the maximum and the sum."""
  column = (rule.block_q, 1)
  softmax = [(column, HIDDEN), (column, 0.0)] if rule.operation == 'softmax' else []
  return [((rule.block_q, H), 0.0), *softmax]


def add_keys(state, q_XH, k_YH, v_YH, pair: Pair, rule: Rule):
  """Returns the state after one more block of keys."""
  scores = _scores(q_XH, k_YH, pair, rule, query_axis=0)
  if rule.operation == 'sigmoid':
    return (state[0] + dot(_weights(scores, None, rule).astype(v_YH.dtype), v_YH, 0),)
  acc_XH, max_X1, sum_X1 = state
  highest_X1 = jnp.maximum(max_X1, jnp.max(jnp.where(scores.visible, scores.logits, HIDDEN), axis=1, keepdims=True))
  w_XY = _weights(scores, highest_X1, rule)
  shrink_X1 = jnp.exp(max_X1 - highest_X1)
  acc_XH = acc_XH * shrink_X1 + dot(w_XY.astype(v_YH.dtype), v_YH, 0)
  return acc_XH, highest_X1, sum_X1 * shrink_X1 + jnp.sum(w_XY, axis=1, keepdims=True)


def attended(state):
  """Returns O and, for softmax, the log-sum-exp: -HIDDEN for a row without visible keys, where O is 0."""
  if len(state) == 1:
    return state
  acc_XH, max_X1, sum_X1 = state
  empty_X1 = sum_X1 == 0.0
  sum_X1 = jnp.where(empty_X1, 1.0, sum_X1)
  return acc_XH / sum_X1, jnp.where(empty_X1, -HIDDEN, max_X1 + jnp.log(sum_X1))


def add_query_gradient(dq_XH, q_XH, k_YH, v_YH, dout_XH, stats, pair: Pair, rule: Rule):
  """Returns the sum of dQ / scale after one more block of keys. stats: lse and delta as columns for softmax, or ()."""
  scores = _scores(q_XH, k_YH, pair, rule, query_axis=0)
  w_XY = _weights(scores, stats[0] if stats else None, rule)
  dlogits_XY = _dlogits(scores, w_XY, dot(dout_XH, v_YH, 1), stats)
  return dq_XH + dot(dlogits_XY.astype(k_YH.dtype), k_YH, 0)


def add_key_gradients(dk_YH, dv_YH, q_XH, k_YH, v_YH, dout_XH, stats, pair: Pair, rule: Rule):
  """Returns the sums of dK / scale and dV after one more block of queries. stats: lse and delta as rows for softmax, or ()."""
  scores = _scores(k_YH, q_XH, pair, rule, query_axis=1)
  w_YX = _weights(scores, stats[0] if stats else None, rule)
  dlogits_YX = _dlogits(scores, w_YX, dot(v_YH, dout_XH, 1), stats)
  dv_YH = dv_YH + dot(w_YX.astype(dout_XH.dtype), dout_XH, 0)
  return dk_YH + dot(dlogits_YX.astype(q_XH.dtype), q_XH, 0), dv_YH


def same_segment(a, b):
  """Returns which pairs share a segment. A negative number is a position that all segments share."""
  return (a == b) | (jnp.minimum(a, b) < 0)


def _scores(rows, columns, pair: Pair, rule: Rule, *, query_axis: int) -> Scores:
  """Returns the scores of rows and columns; queries are along query_axis."""
  logits, capped = softcapped(dot(rows, columns, 1) * rule.scale, rule.softcap)
  logits = logits + rule.bias
  key = pair.first_key + lax.broadcasted_iota(jnp.int32, logits.shape, 1 - query_axis)
  distance = pair.first_query + rule.offset + lax.broadcasted_iota(jnp.int32, logits.shape, query_axis) - key
  if rule.alibi:
    logits = logits - pair.slope * (distance if rule.causal else jnp.abs(distance)).astype(jnp.float32)
  near = []
  if rule.before is not None:
    near.append(distance <= rule.before)
  if rule.after is not None:
    near.append(distance >= -rule.after)
  visible = key < rule.keys
  if near:
    seen = near[0] if len(near) == 1 else near[0] & near[1]
    visible &= seen | (key < rule.prefix) if rule.prefix else seen
  if pair.segments is not None:
    visible &= same_segment(*pair.segments)
  return Scores(logits, visible, capped)


def _weights(scores: Scores, shift, rule: Rule):
  weights = jax.nn.sigmoid(scores.logits) if rule.operation == 'sigmoid' else jnp.exp(scores.logits - shift)
  return jnp.where(scores.visible, weights, 0.0)


def _dlogits(scores: Scores, weights, dweights, stats):
  """Returns the gradient of scale Q K^T."""
  dlogits = weights * (dweights - stats[1]) if stats else weights * (1.0 - weights) * dweights
  return dlogits if scores.capped is None else dlogits * (1.0 - scores.capped * scores.capped)
