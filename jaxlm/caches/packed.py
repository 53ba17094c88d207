"""Quantised memory of one layer: keys are quantised per channel, values per token; the newest tokens are exact.

The layout is that of KIVI (https://arxiv.org/abs/2402.02750). Keys are quantised up to the last multiple of `residual` tokens,
values except the last `residual` tokens. Codes are packed into bytes, so memory is really saved; attention reads the codes
without a dequantised copy of the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention import cached
from jaxlm.attention.attend import attend_by, dot
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import sizes
from jaxlm.caches.kivi import KiviConfig, Quantized, dequantize, quantize_keys, quantize_values
from jaxlm.caches.rows import heads_first, mix_rows, score_rows, write_rows
from jaxlm.caches.slots import (
  EMPTY,
  New,
  Slots,
  append_each,
  beside,
  filled,
  held,
  of_rows,
  take_slots,
  write_positions,
)

if TYPE_CHECKING:
  from jaxtyping import Array, Int


@struct.dataclass
class Packed:
  """Slots in the order in which tokens were added. The last `residual` + 1 slots are never filled."""

  keys: Quantized  # [R, K, C, H]
  values: Quantized  # [R, K, C, H]
  key_tail: jax.Array  # [R, K, residual, H]: the tokens after the last quantised block
  value_tail: jax.Array  # [R, K, residual + 1, H]: the newest tokens; slot s is at s % (residual + 1)
  positions: jax.Array  # [R, C] int32, or [R, K, C] where heads differ; EMPTY where there is no token
  evicted: jax.Array  # [R] int32: number of evicted tokens; a new token's slot is its position minus this
  config: KiviConfig = struct.field(pytree_node=False)

  @property
  def heads(self) -> int:
    return self.key_tail.shape[1]

  @property
  def exact(self) -> bool:
    return False

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    rows, slots = self.positions.shape[0], self.positions.shape[-1]
    return sizes.line(self, f'{rows} rows of {slots} slots in {self.config.bits} bits')

  def read(self, q, positions, rule: AttentionRule, rows=None, lengths=None):
    """Returns the attention of queries over tokens before `lengths` [B]; see `jaxlm.caches.protocol.Readable`."""
    seen = of_rows(self.positions, rows)
    filled_B = filled(seen)
    if cached.is_default(rule, q):
      return self.through_kernel(q, positions, rule, rows, filled_B, lengths)
    return self._attended(q, positions, rule, rows, filled_B, held(seen, lengths))

  def attended(self, q, positions, rule: AttentionRule, rows=None):
    """Returns the attention of the newest token's query over the stored tokens."""
    filled_B = positions[:, 0] + 1 - of_rows(self.evicted, rows)
    if cached.is_default(rule, q):
      return self.through_kernel(q, positions, rule, rows, filled_B)
    return self._attended(q, positions, rule, rows, filled_B)

  def _attended(self, q, positions, rule: AttentionRule, rows, filled_B, mask=None):
    seen = of_rows(self.positions, rows)
    return attend_by(*self.products(filled_B, rows), q, self.heads, positions, seen, rule, mask)

  def attended_beside(self, q, positions, new: New, rule: AttentionRule, rows=None):
    """Returns the attention of queries over the stored tokens and over `new` tokens, which are not quantised."""
    filled_B = new.positions[:, 0] - of_rows(self.evicted, rows)
    if cached.is_default(rule, q):
      return self.through_kernel(q, positions, rule, rows, filled_B, new.positions[:, 0], new)
    return beside(*self.products(filled_B, rows), q, positions, new, of_rows(self.positions, rows), rule)

  def products(self, filled_B, rows=None):
    """Returns the two functions that `attend_by` takes; row b holds `filled_B[b]` tokens."""
    R = self.config.residual
    newest_B = jnp.maximum(filled_B - R, 0)

    def score(q_BKRH):
      tail_BKRR = dot(q_BKRH, of_rows(self.key_tail, rows))
      lay = lambda logits, tail, start: jax.lax.dynamic_update_slice_in_dim(logits, tail, start, 2)
      return jax.vmap(lay)(score_rows(q_BKRH, self.keys, rows), tail_BKRR, filled_B // R * R)

    def mix(w_BKRC):
      exact_BC = jnp.arange(w_BKRC.shape[-1])[None] >= newest_B[:, None]
      packed_BKRH = mix_rows(jnp.where(exact_BC[:, None, None], 0.0, w_BKRC), self.values, rows)
      lift = lambda w, start: jax.lax.dynamic_slice_in_dim(w, start, R, axis=2)
      in_order_BR = (newest_B[:, None] + jnp.arange(R)[None]) % (R + 1)
      tail_BKRH = take_slots(of_rows(self.value_tail, rows), in_order_BR)
      return packed_BKRH + jnp.matmul(jax.vmap(lift)(w_BKRC, newest_B).astype(tail_BKRH.dtype), tail_BKRH)

    return score, mix

  def through_kernel(self, q, positions, rule: AttentionRule, rows, filled_B, end_B=None, new: New | None = None):
    """Returns the attention of queries over the stored tokens before position `end_B`, and over new tokens.

    The kernel reads the tokens whose keys and values are both quantised. The newest tokens count as tokens beside the cache.
    """
    codes = lambda x: cached.Codes(x.codes, x.scale, x.minimum)
    keys, values, slot_BR = self.newest(filled_B, rows)
    seen = of_rows(self.positions, rows)
    if end_B is not None:
      seen = jnp.where(held(seen, end_B).squeeze(-2), seen, EMPTY)
    by_head = seen if seen.ndim == 3 else seen[:, None]
    at_BKR = jnp.take_along_axis(by_head, slot_BR[:, None], axis=-1)  # EMPTY in slots that are not filled.
    tail = cached.Beside(keys, values, at_BKR, None)
    if new is not None:
      tail = joined(tail, cached.tokens(new.keys, new.values, new.positions, new.seen), q.shape[1])
    tail = tail._replace(positions=jnp.broadcast_to(tail.positions, (len(q), self.heads, tail.positions.shape[-1])))
    return cached.attend(
      q, codes(self.keys), codes(self.values), positions, rule, key_positions=seen, lengths=slot_BR[:, 0], rows=rows, beside=tail
    )  # fmt: skip

  def newest(self, filled_B, rows=None):
    """Returns exact values and, where they are not quantised, exact keys [B, K, residual, H] of the newest tokens, and their slots."""
    R = self.config.residual
    slot_BR = jnp.maximum(filled_B - R, 0)[:, None] + jnp.arange(R, dtype=jnp.int32)[None]
    values = take_slots(of_rows(self.value_tail, rows), slot_BR % (R + 1))
    tail = take_slots(of_rows(self.key_tail, rows), slot_BR % R)
    group, row_B = self.config.group, jnp.arange(len(slot_BR), dtype=jnp.int32) if rows is None else rows

    def part(x, start_B, size: int):
      """Returns `size` entries of each row along the token axis, by slices: a TPU would change the layout of what it gathers from."""
      zero = np.int32(0)  # With jax_enable_x64, Python's 0 would be an index of another type.
      cut = lambda row, start: jax.lax.dynamic_slice(x, (row, zero, start, zero), (1, x.shape[1], size, x.shape[3]))[0]
      return jnp.stack([cut(row_B[b], start_B[b]) for b in range(len(start_B))])

    first_B = jnp.minimum(slot_BR[:, 0] // group, self.keys.scale.shape[2] - R // group - 1)
    of_group_BR = slot_BR // group - first_B[:, None]
    # Each token with the scale of its group, as a group of one token.
    scales = [take_slots(part(x, first_B, R // group + 1), of_group_BR) for x in (self.keys.scale, self.keys.minimum)]
    one = Quantized(part(self.keys.codes, slot_BR[:, 0], R), *scales, self.keys.bits)
    exact_BR = slot_BR >= (filled_B // R * R)[:, None]
    return jnp.where(exact_BR[:, None, :, None], tail, dequantize(one, tail.dtype)), values, slot_BR

  def appended(self, k, v, positions, rows=None, mask=None) -> 'Packed':
    """Returns the memory with tokens [B, T, K, H] added. Positions rise by one, or repeat the last. `mask` [B, T]: tokens to add."""
    k, v = (heads_first(x).astype(self.key_tail.dtype) for x in (k, v))
    return append_each(self, k, v, positions, rows, mask)

  def appended_one(self, k_BK1H, v_BK1H, positions_B1, rows, mask) -> 'Packed':
    R, C = self.config.residual, self.positions.shape[-1]
    slot_B = positions_B1[:, 0] - of_rows(self.evicted, rows)
    # The new value is written before the oldest is read from the tail. In the other order, XLA might schedule the write of a
    # pool's codes before another layer has read them, which would copy the pool.
    value_tail = write_rows(self.value_tail, v_BK1H, slot_B % (R + 1), rows, mask)
    leaving = take_slots(of_rows(value_tail, rows), ((slot_B - R) % (R + 1))[:, None])
    # While there are few tokens, no value leaves the tail, and the code is written to the last slot, which is never read.
    to_B = jnp.where(slot_B >= R, slot_B - R, C - 1)
    key_tail = write_rows(self.key_tail, k_BK1H, slot_B % R, rows, mask)
    # An unfinished block is written too; it is not read before its last token is added.
    block = quantize_keys(of_rows(key_tail, rows), self.config)
    return self.replace(
      keys=_write(self.keys, block, slot_B // R * R, rows, mask),
      values=_write(self.values, quantize_values(leaving, self.config), to_B, rows, mask),
      key_tail=key_tail,
      value_tail=value_tail,
      positions=write_positions(self.positions, positions_B1, slot_B, rows, mask),
    )


def joined(tail: cached.Beside, new: cached.Beside, T: int) -> cached.Beside:
  """Returns the tokens of both; T queries see all of `tail`, and of `new` those of its mask."""
  (B, K, R, _), M = tail.keys.shape, new.keys.shape[2]
  positions = jnp.broadcast_to(new.positions[:, None], (B, K, M))
  both = lambda a, b: jnp.concatenate([jnp.broadcast_to(a, (B, K, *a.shape[2:])), b.astype(a.dtype)], axis=2)
  mask = None if new.mask is None else jnp.pad(new.mask, ((0, 0), (0, 0), (R, 0)), constant_values=True)
  return cached.Beside(both(tail.keys, new.keys), both(tail.values, new.values), both(tail.positions, positions), mask)


def _write(store: Quantized, new: Quantized, slot_B, rows, mask) -> Quantized:
  """Writes tokens from slot `slot_B[b]` of each row on; arrays with one entry per group use the slot divided by the group size."""
  axis = 3 if store.tokens_last else 2
  at = lambda old: slot_B * old.shape[axis] // store.codes.shape[axis]
  return jax.tree.map(lambda old, x: write_rows(old, x, at(old), rows, mask, axis), store, new)


def pack(memory: Slots, lengths: Int[Array, ' B'], config: KiviConfig) -> Packed:
  """Returns a quantised copy of a memory that grows by appending, with room for as many tokens as `memory` has slots.

  Args:
    memory: memory whose first slots are the filled ones.
    lengths: tokens of each row so far, evicted ones included.

  Raises:
    ValueError: the group size does not divide the head size, or the memory is a ring, which overwrites single tokens of
      blocks that are quantised together.
  """
  if memory.recent is not None:
    raise ValueError("A ring cannot be packed, it overwrites single tokens: use growth='append'.")
  R, C = config.residual, memory.keys.shape[2]
  config.check_head_dim(memory.keys.shape[3])
  more = -C % R + R  # One more block, so that a tail at the end stays within the array.
  keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in (memory.keys, memory.values))
  spare = ((0, 0),) * (memory.positions.ndim - 1) + ((0, more),)
  filled_B = lengths - memory.evicted
  tail_BR = (filled_B // R * R)[:, None] + jnp.arange(R)[None]
  index_1R = jnp.arange(R + 1)[None]
  newest_BR = filled_B[:, None] - 1 - (filled_B[:, None] - 1 - index_1R) % (R + 1)
  return Packed(
    keys=quantize_keys(keys, config),
    values=quantize_values(values, config),
    key_tail=take_slots(keys, tail_BR),
    value_tail=take_slots(values, jnp.where(newest_BR >= 0, newest_BR, index_1R)),
    positions=jnp.pad(memory.positions, spare, constant_values=EMPTY),
    evicted=memory.evicted,
    config=config,
  )
