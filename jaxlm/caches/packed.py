"""One layer's memory in few bits: keys quantised per channel, values per token, the newest tokens exact.

The layout of KIVI (https://arxiv.org/abs/2402.02750). Of n tokens, keys are quantised up to the last multiple of
`residual`, values up to the last `residual` tokens; what is newer is kept as it came. Codes are packed, so the bytes are
really gone, and every step reads them all back.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.caches.full import heads_first, write_rows
from jaxlm.caches.kivi import KiviConfig, Quantized, dequantize, quantize_keys, quantize_values
from jaxlm.caches.layered import EMPTY, Everything, Window, take_slots
from jaxlm.models.attention import AttentionRule, attend


@struct.dataclass
class Packed:
  """Slots in the order of positions: the first `initial`, then, after `evicted` forgotten ones, all others."""

  keys: Quantized  # [B, K, C, H]
  values: Quantized  # [B, K, C, H]
  key_tail: jax.Array  # [B, K, R, H]: the tokens after the last quantised block
  value_tail: jax.Array  # [B, K, R, H]: the newest R tokens; slot s is at s % R
  evicted: jax.Array  # [B] int32
  initial: int = struct.field(pytree_node=False)
  config: KiviConfig = struct.field(pytree_node=False)

  @property
  def capacity(self) -> int:
    return self.keys.codes.shape[2]

  def attend(self, q, k, v, positions, rule: AttentionRule):
    k, v = (heads_first(x).astype(self.key_tail.dtype) for x in (k, v))
    slot_B = positions[:, 0] - self.evicted
    if q.shape[1] == 1:
      memory = self.appended(k, v, slot_B)
      keys, values, seen_BS = memory.read(slot_B + 1)
      return attend(q, keys, values, positions, seen_BS, rule), memory
    # New tokens are exact to each other, and are packed one after the other.
    keys, values, seen_BS = self.read(slot_B)
    keys, values = jnp.concatenate([keys, k], axis=2), jnp.concatenate([values, v], axis=2)
    out = attend(q, keys, values, positions, jnp.concatenate([seen_BS, positions], axis=1), rule)
    step = lambda memory, new: (memory.appended(new[0][:, :, None], new[1][:, :, None], new[2]), None)
    each = (*(jnp.moveaxis(x, 2, 0) for x in (k, v)), slot_B[None] + jnp.arange(q.shape[1])[:, None])
    return out, jax.lax.scan(step, self, each)[0]

  def read(self, filled_B) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns keys and values [B, K, C, H], and the position of each slot [B, C], of so many tokens in each row."""
    R, dtype = self.config.residual, self.key_tail.dtype
    keys = write_rows(dequantize(self.keys, dtype), self.key_tail, filled_B // R * R)
    newest_B = jnp.maximum(filled_B - R, 0)
    in_order_BR = (newest_B[:, None] + jnp.arange(R)[None]) % R
    values = write_rows(dequantize(self.values, dtype), take_slots(self.value_tail, in_order_BR), newest_B)
    slot_1C = jnp.arange(self.capacity)[None]
    position_BC = jnp.where(slot_1C < self.initial, slot_1C, slot_1C + self.evicted[:, None])
    return keys, values, jnp.where(slot_1C < filled_B[:, None], position_BC, EMPTY)

  def appended(self, k_BK1H, v_BK1H, slot_B) -> 'Packed':
    """Adds one token. What is quantised anew is written at every step: cheaper than asking each row whether it must be."""
    R = self.config.residual
    leaving = take_slots(self.value_tail, (slot_B % R)[:, None])
    value_codes = quantize_values(leaving, self.config)
    # Nothing leaves while fewer than R tokens are there; slot 0 is then written, and again by the token it belongs to.
    values = _write(self.values, value_codes, jnp.maximum(slot_B - R, 0))
    key_tail = write_rows(self.key_tail, k_BK1H, slot_B % R)
    # An unfinished block is written too: it is not read before its last token has come.
    keys = _write(self.keys, quantize_keys(key_tail, self.config), slot_B // R * R)
    value_tail = write_rows(self.value_tail, v_BK1H, slot_B % R)
    return self.replace(keys=keys, values=values, key_tail=key_tail, value_tail=value_tail)


def _write(store: Quantized, new: Quantized, slot_B) -> Quantized:
  """Writes tokens from each row's own slot on; what is kept per group of tokens is found at a fraction of the slot."""
  at = lambda old: slot_B * old.shape[2] // store.codes.shape[2]
  return jax.tree.map(lambda old, x: write_rows(old, x, at(old)), store, new)


def pack(
  keys: Float[Array, 'B K S H'],
  values: Float[Array, 'B K S H'],
  filled: Int[Array, ' B'],
  evicted: Int[Array, ' B'],
  *,
  initial: int,
  config: KiviConfig,
  capacity: int,
) -> Packed:
  """Returns the packed memory of each row's first `filled` slots, with room for `capacity` tokens in all.

  Raises:
    ValueError: the group does not divide the heads.
  """
  R, S = config.residual, keys.shape[2]
  config.check_head_dim(keys.shape[3])
  slots = -(-capacity // R) * R + R  # One block more, so that a tail can be laid over the end.
  keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, max(0, slots - S)), (0, 0)))[:, :, :slots] for x in (keys, values))
  tail_BR = (filled // R * R)[:, None] + jnp.arange(R)[None]
  index_1R = jnp.arange(R)[None]
  newest_BR = filled[:, None] - 1 - (filled[:, None] - 1 - index_1R) % R
  return Packed(
    keys=quantize_keys(keys, config),
    values=quantize_values(values, config),
    key_tail=take_slots(keys, tail_BR),
    value_tail=take_slots(values, jnp.where(newest_BR >= 0, newest_BR, index_1R)),
    evicted=evicted,
    initial=initial,
    config=config,
  )


def packed_layer(memory: Any, lengths: Int[Array, ' B'], config: KiviConfig, capacity: int) -> Packed:
  """Returns the same tokens packed, of a layer that remembers everything or has a window that grows by appending.

  Args:
    lengths: tokens of each row so far.
    capacity: of a layer that remembers everything; a window's own room stays.

  Raises:
    ValueError: the layer is a ring, which overwrites single tokens of blocks that are quantised together.
  """
  if isinstance(memory, Everything):
    zero_B = jnp.zeros_like(lengths)
    return pack(memory.keys, memory.values, lengths, zero_B, initial=0, config=config, capacity=capacity)
  if isinstance(memory, Window) and memory.recent is None:
    filled, room = lengths - memory.evicted, memory.keys.shape[2]
    return pack(
      memory.keys, memory.values, filled, memory.evicted, initial=memory.initial, config=config, capacity=room
    )
  raise ValueError(f"{type(memory).__name__} cannot be packed: use growth='append', a ring overwrites single tokens.")
