"""Kernel bodies of flash attention: one block of queries against a row of keys, and the reverse.

  S = scale Q K^T + bias - slope |i + offset - j|        offset = keys - queries: the last query is at the last key
  sigmoid   P = sigmoid(S)         dS = P (1 - P) dP
  softmax   P = exp(S - lse)       dS = P (dP - delta),  delta = rowsum(dO O)
  O = P V    dV = P^T dO    dP = dO V^T    dQ = scale dS K    dK = scale dS^T Q

See https://arxiv.org/abs/2409.04431, section on FlashSigmoid. Sigmoid needs neither lse nor delta: its forward pass is a plain sum
over key blocks. Sigmoid is not invariant to a shift of a row, so ALiBi cannot be simplified to slope * j as for softmax.

Blocks are two-dimensional: X queries by Y keys, or Y by X in names with YX, which avoids transposes in dK and dV. Products have
inputs of the arrays' dtype and accumulate in float32. The loop bounds skip blocks in which all keys are hidden.
"""

import dataclasses

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

HIDDEN = -1e30  # Finite, so that a row without visible keys does not compute inf - inf.


@dataclasses.dataclass(frozen=True)
class Rule:
  """The static arguments of the kernels."""

  operation: str
  scale: float
  bias: float
  alibi: bool
  segments: bool  # Queries see only the keys of their own segment.
  before: int | None  # Number of keys that a query sees before its position; None: all.
  after: int | None  # Number of keys that a query sees after its position; None: all.
  keys: int  # Number of keys; the rest of K and V is padding.
  offset: int  # Position of query 0 among the keys.
  group: int  # Query heads per key head.
  block_q: int
  block_k: int


def forward(slope_ref, q_ref, k_ref, v_ref, *refs, rule: Rule):
  """Computes O for one block of queries.

  refs: if there are segments, those of the queries as a column and those of the keys as a row; O; for softmax, lse.
  """
  (query_segments_ref, key_segments_ref), (out_ref, *lse_ref) = _segments_first(refs, rule)
  q_XH = q_ref[...]
  first_query = pl.program_id(2) * rule.block_q
  slope = slope_ref[pl.program_id(0), pl.program_id(1)]

  def block(j):
    at = _block_at(j, rule.block_k)
    same_XY = _same(query_segments_ref, key_segments_ref, at)
    logits = _logits(q_XH, k_ref[at, :], first_query, j * rule.block_k, slope, rule, same_XY, query_axis=0)
    return logits, v_ref[at, :]

  def add_sigmoid(j, acc_XH):
    (logits_XY, visible_XY), v_YH = block(j)
    return acc_XH + _dot(_weights(logits_XY, visible_XY, None, rule).astype(v_YH.dtype), v_YH, 0)

  def add_softmax(j, carry):
    acc_XH, max_X1, sum_X1 = carry
    (logits_XY, visible_XY), v_YH = block(j)
    highest_X1 = jnp.maximum(max_X1, jnp.max(jnp.where(visible_XY, logits_XY, HIDDEN), axis=1, keepdims=True))
    w_XY = _weights(logits_XY, visible_XY, highest_X1, rule)
    shrink_X1 = jnp.exp(max_X1 - highest_X1)
    acc_XH = acc_XH * shrink_X1 + _dot(w_XY.astype(v_YH.dtype), v_YH, 0)
    return acc_XH, highest_X1, sum_X1 * shrink_X1 + jnp.sum(w_XY, axis=1, keepdims=True)

  low, high = _keys_seen(first_query, k_ref.shape[0], rule)
  acc_XH = jnp.zeros(q_XH.shape, jnp.float32)
  if rule.operation == 'sigmoid':
    out_ref[...] = lax.fori_loop(low, high, add_sigmoid, acc_XH).astype(out_ref.dtype)
    return
  column = (q_XH.shape[0], 1)
  carry = (acc_XH, jnp.full(column, HIDDEN, jnp.float32), jnp.zeros(column, jnp.float32))
  acc_XH, max_X1, sum_X1 = lax.fori_loop(low, high, add_softmax, carry)
  empty_X1 = sum_X1 == 0.0
  sum_X1 = jnp.where(empty_X1, 1.0, sum_X1)
  out_ref[...] = (acc_XH / sum_X1).astype(out_ref.dtype)
  # The weights of an empty row must be 0 in the backward pass too: exp(S - 1e30).
  lse_ref[0][...] = jnp.where(empty_X1, -HIDDEN, max_X1 + jnp.log(sum_X1))


def query_gradient(slope_ref, q_ref, k_ref, v_ref, dout_ref, *refs, rule: Rule):
  """Computes dQ for one block of queries. refs: segments as in `forward`; for softmax, lse and delta as columns; dQ."""
  (query_segments_ref, key_segments_ref), (*stats, dq_ref) = _segments_first(refs, rule)
  q_XH, dout_XH = q_ref[...], dout_ref[...]
  stats = [ref[...] for ref in stats]
  first_query = pl.program_id(2) * rule.block_q
  slope = slope_ref[pl.program_id(0), pl.program_id(1)]

  def add(j, dq_XH):
    at = _block_at(j, rule.block_k)
    k_YH = k_ref[at, :]
    same_XY = _same(query_segments_ref, key_segments_ref, at)
    logits_XY, visible_XY = _logits(q_XH, k_YH, first_query, j * rule.block_k, slope, rule, same_XY, query_axis=0)
    w_XY = _weights(logits_XY, visible_XY, stats[0] if stats else None, rule)
    dlogits_XY = _dlogits(w_XY, _dot(dout_XH, v_ref[at, :], 1), stats)
    return dq_XH + _dot(dlogits_XY.astype(k_YH.dtype), k_YH, 0)

  low, high = _keys_seen(first_query, k_ref.shape[0], rule)
  dq_XH = lax.fori_loop(low, high, add, jnp.zeros(q_XH.shape, jnp.float32))
  dq_ref[...] = (rule.scale * dq_XH).astype(dq_ref.dtype)


def key_gradients(slope_ref, q_ref, k_ref, v_ref, dout_ref, *refs, rule: Rule):
  """Computes dK and dV for one block of keys, summed over the query heads of its group, which are stacked in the rows of Q and dO.

  refs: if there are segments, those of the keys as a column and those of the queries as one row per block; for softmax, lse and
  delta as one row per block; dK; dV.
  """
  (key_segments_ref, query_segments_ref), (*stats_refs, dk_ref, dv_ref) = _segments_first(refs, rule)
  k_YH, v_YH = k_ref[...], v_ref[...]
  batch, first_head = pl.program_id(0), pl.program_id(1) * rule.group
  first_key = pl.program_id(2) * rule.block_k
  blocks = q_ref.shape[0] // rule.group // rule.block_q

  def add_head(g, carry):
    slope = slope_ref[batch, first_head + g]

    def add(i, carry):
      dk_YH, dv_YH = carry
      at = _block_at(g * blocks + i, rule.block_q)
      q_XH, dout_XH = q_ref[at, :], dout_ref[at, :]
      stats = [ref[g * blocks + i] for ref in stats_refs]
      same_YX = _same(key_segments_ref, query_segments_ref, i)
      logits_YX, visible_YX = _logits(k_YH, q_XH, i * rule.block_q, first_key, slope, rule, same_YX, query_axis=1)
      w_YX = _weights(logits_YX, visible_YX, stats[0] if stats else None, rule)
      dlogits_YX = _dlogits(w_YX, _dot(v_YH, dout_XH, 1), stats)
      dv_YH = dv_YH + _dot(w_YX.astype(dout_XH.dtype), dout_XH, 0)
      return dk_YH + _dot(dlogits_YX.astype(q_XH.dtype), q_XH, 0), dv_YH

    return lax.fori_loop(low, high, add, carry)

  # Key j is seen by the queries at positions j - after .. j + before.
  low, high = _blocks_within(
    first_key - rule.offset, rule.block_k, rule.after, rule.before, rule.block_q, rule.block_q * blocks
  )
  zeros = jnp.zeros(k_YH.shape, jnp.float32)
  dk_YH, dv_YH = lax.fori_loop(0, rule.group, add_head, (zeros, zeros))
  dk_ref[...] = (rule.scale * dk_YH).astype(dk_ref.dtype)
  dv_ref[...] = dv_YH.astype(dv_ref.dtype)


def _segments_first(refs, rule: Rule):
  """Returns (two refs of segments, or None twice; the other refs)."""
  return (refs[:2], refs[2:]) if rule.segments else ((None, None), refs)


def _same(column_ref, rows_ref, at):
  """Returns which pairs share a segment: the column against the part `at` of a single row, or against row `at` of several."""
  if column_ref is None:
    return None
  row = rows_ref[:, at] if len(rows_ref.shape) == 2 else rows_ref[at]
  return column_ref[...] == row


def _logits(rows, columns, first_query, first_key, slope, rule: Rule, same, *, query_axis: int):
  """Returns scale rows columns^T + bias - slope |distance|, and which of them are visible; queries are along query_axis."""
  logits = _dot(rows, columns, 1) * rule.scale + rule.bias
  key = first_key + lax.broadcasted_iota(jnp.int32, logits.shape, 1 - query_axis)
  distance = first_query + rule.offset + lax.broadcasted_iota(jnp.int32, logits.shape, query_axis) - key
  if rule.alibi:
    logits = logits - slope * jnp.abs(distance).astype(jnp.float32)
  visible = key < rule.keys
  if rule.before is not None:
    visible &= distance <= rule.before
  if rule.after is not None:
    visible &= distance >= -rule.after
  return logits, visible if same is None else visible & same


def _weights(logits, visible, shift, rule: Rule):
  weights = jax.nn.sigmoid(logits) if rule.operation == 'sigmoid' else jnp.exp(logits - shift)
  return jnp.where(visible, weights, 0.0)


def _dlogits(weights, dweights, stats):
  return weights * (dweights - stats[1]) if stats else weights * (1.0 - weights) * dweights


def _keys_seen(first_query, padded_keys: int, rule: Rule):
  position = first_query + rule.offset
  return _blocks_within(position, rule.block_q, rule.before, rule.after, rule.block_k, padded_keys)


def _blocks_within(first, count: int, before: int | None, after: int | None, block: int, length: int):
  """Returns (low, high): the blocks of 0 .. length that overlap positions first - before .. first + count - 1 + after."""
  index = lambda n: lax.div(jnp.maximum(n, 0), np.int32(block))
  low = 0 if before is None else index(first - before)
  high = length // block if after is None else jnp.minimum(index(first + count + after + block - 1), length // block)
  return low, high


def _block_at(i, block: int):
  return pl.ds(pl.multiple_of(i * block, block), block)


def _dot(a, b, axis: int):
  """Contracts a's last axis with b's `axis`."""
  # Explicit, because by default a GPU rounds float32 to TF32 and a TPU to bfloat16, and because a global setting must not change
  # products of bfloat16.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
  return lax.dot_general(
    a, b, (((1,), (axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
  )  # fmt: skip
