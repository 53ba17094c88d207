"""One layer's memory in few bits: keys quantised per channel, values per token, the newest tokens exact.

The layout of KIVI (https://arxiv.org/abs/2402.02750). Of n tokens, keys are quantised up to the last multiple of
`residual`, values up to the last `residual` tokens; what is newer is kept as it came. Codes are packed, so the bytes are
really gone, and attention reads the codes themselves.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxlm.caches.kivi import KiviConfig, Quantized, quantize_keys, quantize_values
from jaxlm.caches.rows import heads_first, mix_rows, score_rows, write_rows
from jaxlm.caches.slots import EMPTY, Slots, append_each, attend_beside, of_rows, take_slots
from jaxlm.models.attention import AttentionRule, attend_by, dot


@struct.dataclass
class Packed:
  """Slots in the order of their tokens' coming. The last `residual` + 1 are never filled."""

  keys: Quantized  # [R, K, C, H]
  values: Quantized  # [R, K, C, H]
  key_tail: jax.Array  # [R, K, residual, H]: the tokens after the last quantised block
  value_tail: jax.Array  # [R, K, residual, H]: the newest tokens; slot s is at s % residual
  positions: jax.Array  # [R, C] int32, or [R, K, C] where heads differ; EMPTY where there is no token
  evicted: jax.Array  # [R] int32: what a new token's position is ahead of its slot
  filled: jax.Array  # [R] int32
  config: KiviConfig = struct.field(pytree_node=False)

  def attend(self, q, k, v, positions, rule: AttentionRule, rows=None):
    k, v = (heads_first(x).astype(self.key_tail.dtype) for x in (k, v))
    if q.shape[1] == 1:
      memory = self.appended(k, v, positions, rows)
      return memory.attended(q, positions, rule, rows), memory
    # New tokens are exact to each other, and are packed one after the other.
    products, seen = self.products(rows), of_rows(self.positions, rows)
    out = attend_beside(*products, q, k, v, positions, seen, rule)
    return out, append_each(self, k, v, positions, rows)

  def attended(self, q, positions, rule: AttentionRule, rows=None):
    """Returns the attention of queries over what is there."""
    return attend_by(*self.products(rows), q, self.key_tail.shape[1], positions, of_rows(self.positions, rows), rule)

  def products(self, rows=None):
    """Returns the two functions that `attend_by` takes."""
    R, filled_B = self.config.residual, of_rows(self.filled, rows)
    newest_B = jnp.maximum(filled_B - R, 0)

    def score(q_BKRH):
      tail_BKRR = dot(q_BKRH, of_rows(self.key_tail, rows))
      lay = lambda logits, tail, start: jax.lax.dynamic_update_slice(logits, tail, (0, 0, start))
      return jax.vmap(lay)(score_rows(q_BKRH, self.keys, rows), tail_BKRR, filled_B // R * R)

    def mix(w_BKRC):
      exact_BC = jnp.arange(w_BKRC.shape[-1])[None] >= newest_B[:, None]
      packed_BKRH = mix_rows(jnp.where(exact_BC[:, None, None], 0.0, w_BKRC), self.values, rows)
      lift = lambda w, start: jax.lax.dynamic_slice(w, (0, 0, start), (*w.shape[:2], R))
      in_order_BR = (newest_B[:, None] + jnp.arange(R)[None]) % R
      tail_BKRH = take_slots(of_rows(self.value_tail, rows), in_order_BR)
      return packed_BKRH + jnp.matmul(jax.vmap(lift)(w_BKRC, newest_B).astype(tail_BKRH.dtype), tail_BKRH)

    return score, mix

  def appended(self, k_BK1H, v_BK1H, positions_B1, rows=None) -> 'Packed':
    """Adds one token, or writes the last one again."""
    R, C = self.config.residual, self.positions.shape[-1]
    filled_B = of_rows(self.filled, rows)
    slot_B = positions_B1[:, 0] - of_rows(self.evicted, rows)
    # Nothing leaves the exact values while there are few of them: the code is then written where none is read.
    leaves_B = (slot_B >= R) & (slot_B >= filled_B)
    leaving = take_slots(of_rows(self.value_tail, rows), (slot_B % R)[:, None])
    values = _write(self.values, quantize_values(leaving, self.config), jnp.where(leaves_B, slot_B - R, C - 1), rows)
    key_tail = write_rows(self.key_tail, k_BK1H, slot_B % R, rows)
    # An unfinished block is written too: it is not read before its last token has come.
    block = quantize_keys(of_rows(key_tail, rows), self.config)
    by_head = self.positions.reshape(len(self.positions), -1, C, 1)
    new = jnp.broadcast_to(positions_B1[:, None, :, None], (len(slot_B), by_head.shape[1], 1, 1))
    filled_B = jnp.maximum(filled_B, slot_B + 1)
    return self.replace(
      keys=_write(self.keys, block, slot_B // R * R, rows),
      values=values,
      key_tail=key_tail,
      value_tail=write_rows(self.value_tail, v_BK1H, slot_B % R, rows),
      positions=write_rows(by_head, new, slot_B, rows).reshape(self.positions.shape),
      filled=filled_B if rows is None else self.filled.at[rows].set(filled_B),
    )


def _write(store: Quantized, new: Quantized, slot_B, rows) -> Quantized:
  """Writes tokens from each row's own slot on; what is kept per group of tokens is found at a fraction of the slot."""
  at = lambda old: slot_B * old.shape[2] // store.codes.shape[2]
  return jax.tree.map(lambda old, x: write_rows(old, x, at(old), rows), store, new)


def pack(memory: Slots, lengths: Int[Array, ' B'], config: KiviConfig) -> Packed:
  """Returns the same tokens packed, of a memory that grows by appending, with room for as many as it has slots.

  Args:
    memory: its filled slots are its first ones.
    lengths: tokens of each row so far, forgotten ones included.

  Raises:
    ValueError: the group does not divide the heads, or the memory is a ring, which overwrites single tokens of blocks
      that are quantised together.
  """
  if memory.recent is not None:
    raise ValueError("A ring cannot be packed, it overwrites single tokens: use growth='append'.")
  R, C = config.residual, memory.keys.shape[2]
  config.check_head_dim(memory.keys.shape[3])
  more = -C % R + R  # A block more, so that a tail can be laid over the end.
  keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in (memory.keys, memory.values))
  spare = ((0, 0),) * (memory.positions.ndim - 1) + ((0, more),)
  filled_B = lengths - memory.evicted
  tail_BR = (filled_B // R * R)[:, None] + jnp.arange(R)[None]
  index_1R = jnp.arange(R)[None]
  newest_BR = filled_B[:, None] - 1 - (filled_B[:, None] - 1 - index_1R) % R
  return Packed(
    keys=quantize_keys(keys, config),
    values=quantize_values(values, config),
    key_tail=take_slots(keys, tail_BR),
    value_tail=take_slots(values, jnp.where(newest_BR >= 0, newest_BR, index_1R)),
    positions=jnp.pad(memory.positions, spare, constant_values=EMPTY),
    evicted=memory.evicted,
    filled=filled_B,
    config=config,
  )
