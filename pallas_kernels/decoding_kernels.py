"""Kernel body of decode attention: the queries of a row against one block of stored tokens, for all key heads.

  S = softcap(scale Q K^T) + bias - slope |query position - key position|
  softmax   out = sum exp(S - top) V,  total = sum exp(S - top),  top = max S
  sigmoid   out = sum sigmoid(S) V

The grid is (rows of the batch, splits, blocks of a split). Sums stay in VMEM while the blocks of a split go by, as in
flash decoding (https://pytorch.org/blog/flash-decoding/); decoding.py adds the splits and the tokens beside the cache.

A TPU keeps arrays whose channels, or bytes of codes, are no multiple of 128 with the token axis last, so that no lane is empty. The
kernel reads them as they lie.

Array names carry shapes: R = G T queries of a key head, S tokens of a block, H head dim, P = H bits / 8 bytes of a token's codes.
"""

import dataclasses

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from pallas_kernels.arithmetic import HIDDEN, dot, softcapped

UNUSED = 1 << 30  # Slots whose positions are at least this hold no token.


@dataclasses.dataclass(frozen=True)
class Rule:
  """The static arguments of a call."""

  operation: str
  scale: float
  bias: float = 0.0
  softcap: float | None = None
  alibi: bool = False
  causal: bool = True
  window: int | None = None
  initial: int = 0


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the stored tokens lie in memory, and their blocks."""

  slots: int  # Slots of a row.
  block: int  # Slots of a block.
  keys_last: bool  # The token axis of keys is last, [K, H, S] or codes [K, P, S], not [K, S, H] or [K, S, P].
  values_last: bool  # The same of values. Codes of values have it last in any case.
  positions: bool  # There are key positions; without them a slot is its position.
  group: int | None = None  # Tokens of a key's scale; None: keys and values are not quantised.
  scales_last: bool = True  # Scales of keys are [K, H, groups], not [K, groups, H].


def visible(rule: Rule, position_R1, key_position_1S):
  """Returns which keys the rule shows to each query. The arrays must broadcast."""
  seen = key_position_1S < UNUSED
  distance = position_R1 - key_position_1S
  if rule.causal:
    seen &= distance >= 0
  if rule.window is not None:
    seen &= (distance < rule.window) | (key_position_1S < rule.initial)
  return seen


def scored(rule: Rule, products, distance, slope):
  """Returns the logits of products q . k."""
  logits = softcapped(products * rule.scale, rule.softcap)[0] + rule.bias
  return logits - slope * jnp.abs(distance).astype(jnp.float32) if rule.alibi else logits


def span(plan_ref, b, p, splits: int):
  """Returns (first, end): the blocks of split p of row b. `plan_ref` is [4, B]: row in memory, length, first block, end block."""
  low, high = plan_ref[2, b], plan_ref[3, b]
  each = lax.div(jnp.maximum(high - low, 0) + np.int32(splits - 1), np.int32(splits))
  first = low + p * each
  return first, jnp.minimum(first + each, high)


def decode(plan_ref, q_ref, position_ref, *refs, rule: Rule, layout: Layout, splits: int):
  """Adds one block to the sums of a split.

  refs: slopes [K, R, 1] for ALiBi; key positions [K or 1, 1, S] if there are any; keys and values, each an array, or codes, scale
  and minimum; then the outputs: out [K, R, H], and for softmax top and total [K, R, 1].
  """
  refs = list(refs)
  slope_ref = refs.pop(0) if rule.alibi else None
  key_position_ref = refs.pop(0) if layout.positions else None
  parts = 1 if layout.group is None else 3
  key_refs, value_refs, (out_ref, *stats) = refs[:parts], refs[parts : 2 * parts], refs[2 * parts :]
  b, p, i = (pl.program_id(axis) for axis in range(3))
  first, end = span(plan_ref, b, p, splits)
  start, length = (first + i) * layout.block, plan_ref[1, b]

  @pl.when(i == 0)
  def begin():
    out_ref[...] = jnp.zeros_like(out_ref)
    for ref, value in zip(stats, (HIDDEN, 0.0)):
      ref[...] = jnp.full_like(ref, value)

  def add(ends_here: bool):
    slot_1S = start + lax.broadcasted_iota(jnp.int32, (1, layout.block), 1)

    def head(h, carry):
      at = 0 if layout.positions and key_position_ref.shape[0] == 1 else h
      key_position_1S = key_position_ref[at] if layout.positions else slot_1S
      slope = slope_ref[h] if rule.alibi else None
      q_RH = q_ref[h]
      if layout.group is None:
        k, v = key_refs[0][h], value_refs[0][h]
      else:
        k = _keys(key_refs, h, q_RH.shape[1], start, length, layout).astype(q_RH.dtype)
        v = _values(value_refs, h, q_RH.shape[1]).astype(jnp.promote_types(jnp.bfloat16, value_refs[1].dtype))
      key_axis, value_axis = int(layout.keys_last), int(layout.values_last)
      if ends_here:  # What lies beyond the end may be NaN, which the weight 0 would not remove.
        along = lax.broadcasted_iota(jnp.int32, v.shape, value_axis)
        v = jnp.where(start + along < length, v, jnp.zeros_like(v))
      products_RS = dot(q_RH, k, 1 - key_axis)
      logits_RS = scored(rule, products_RS, position_ref[...] - key_position_1S, slope)
      seen_RS = visible(rule, position_ref[...], key_position_1S) & (slot_1S < length)
      if rule.operation == 'sigmoid':
        w_RS = jnp.where(seen_RS, jax.nn.sigmoid(logits_RS), 0.0)
        out_ref[h] += dot(w_RS.astype(v.dtype), v, value_axis)
        return carry
      top_ref, total_ref = stats
      highest_R1 = jnp.maximum(top_ref[h], jnp.max(jnp.where(seen_RS, logits_RS, HIDDEN), axis=1, keepdims=True))
      w_RS = jnp.where(seen_RS, jnp.exp(logits_RS - highest_R1), 0.0)
      shrink_R1 = jnp.exp(top_ref[h] - highest_R1)
      out_ref[h] = out_ref[h] * shrink_R1 + dot(w_RS.astype(v.dtype), v, value_axis)
      total_ref[h] = total_ref[h] * shrink_R1 + jnp.sum(w_RS, axis=1, keepdims=True)
      top_ref[h] = highest_R1
      return carry

    lax.fori_loop(0, q_ref.shape[0], head, 0)

  there, whole = first + i < end, start + layout.block <= length
  pl.when(there & whole)(lambda: add(ends_here=False))
  pl.when(there & ~whole)(lambda: add(ends_here=True))


def _fields(codes, channels: int, axis: int = 0):
  """Returns float32 codes with `channels` instead of P bytes along `axis`.

  Byte j holds the codes of channels j, j + P, ..., from its lowest bits on.
  """
  P = codes.shape[axis]
  bits = 8 * P // channels
  codes = codes.astype(jnp.int32)
  fields = [(codes >> (i * bits)) & (2**bits - 1) for i in range(channels // P)]
  return jnp.concatenate(fields, axis=axis).astype(jnp.float32)


def _keys(refs, h, channels: int, start, length, layout: Layout):
  """Returns keys [H, S], or [S, H] if their tokens are not last.

  A product with a 0/1 matrix copies the scale of each group of tokens to its tokens.
  """
  codes_ref, scale_ref, minimum_ref = refs
  group_axis = 1 if layout.scales_last else 0
  groups = scale_ref.shape[1 + group_axis]
  # The block of scales may hold the groups of several blocks of codes.
  first = lax.div(start, np.int32(groups * layout.group)) * groups
  group = first + lax.broadcasted_iota(jnp.int32, scale_ref.shape[1:], group_axis)
  row_GS = first + lax.broadcasted_iota(jnp.int32, (groups, layout.block), 0)
  slot_GS = start + lax.broadcasted_iota(jnp.int32, row_GS.shape, 1)
  copies_GS = (row_GS == lax.div(slot_GS, np.int32(layout.group))).astype(scale_ref.dtype)
  # Groups beyond the end may be NaN.
  valid = lambda ref: jnp.where(group * layout.group < length, ref[h], jnp.zeros_like(ref[h]))
  if layout.keys_last:
    spread = lambda ref: dot(valid(ref), copies_GS, 0, group_axis)
  else:
    spread = lambda ref: dot(copies_GS, valid(ref), group_axis, 0)
  codes = _fields(codes_ref[h], channels, 0 if layout.keys_last else 1)
  return codes * spread(scale_ref) + spread(minimum_ref)


def _values(refs, h, channels: int):
  """Returns values [H, S]. Their scales are [groups of channels, S]."""
  codes_ref, scale_ref, minimum_ref = refs
  groups, block = scale_ref.shape[1:]
  size = channels // groups
  spread = lambda ref: jnp.concatenate(
    [jnp.broadcast_to(ref[h, g : g + 1].astype(jnp.float32), (size, block)) for g in range(groups)], axis=0
  )
  return _fields(codes_ref[h], channels) * spread(scale_ref) + spread(minimum_ref)
