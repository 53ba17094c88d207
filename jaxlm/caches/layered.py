"""A cache whose layers remember differently: everything, or the first and the latest tokens only.

What a layer forgets is freed: a `Window` is built from a full layer's arrays, which can then be deleted. Keys keep the
rotation of their own positions, so distances to later queries stay what they were.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.caches.full import FullCache, heads_first, write_rows
from jaxlm.models.attention import AttentionRule, attend

EMPTY = 1 << 30  # The position of a slot without a token: in the future of every query, so that none sees it.


@struct.dataclass
class Everything:
  """All keys and values of one layer; the slot of a token is its position."""

  keys: jax.Array  # [B, K, S, H]
  values: jax.Array  # [B, K, S, H]

  def attend(self, q, k, v, positions, rule: AttentionRule):
    k, v = (heads_first(x).astype(self.keys.dtype) for x in (k, v))
    keys, values = write_rows(self.keys, k, positions[:, 0]), write_rows(self.values, v, positions[:, 0])
    return attend(q, keys, values, positions, jnp.arange(keys.shape[2])[None], rule), Everything(keys, values)


@struct.dataclass
class Window:
  """The first `initial` tokens of one layer and the latest ones.

  Without `recent` new tokens are appended and nothing more is forgotten. With it the slots after the first are a ring of
  the latest `recent` tokens, the query's own included (https://arxiv.org/abs/2309.17453).
  """

  keys: jax.Array  # [B, K, C, H]
  values: jax.Array  # [B, K, C, H]
  positions: jax.Array  # [B, C] int32, EMPTY where there is no token
  evicted: jax.Array  # [B] int32, tokens forgotten before the latest ones: what a position is ahead of its slot
  initial: int = struct.field(pytree_node=False)
  recent: int | None = struct.field(pytree_node=False, default=None)

  def attend(self, q, k, v, positions, rule: AttentionRule):
    k, v = (heads_first(x).astype(self.keys.dtype) for x in (k, v))
    if self.recent is None:
      new = self.written(k, v, positions, positions[:, 0] - self.evicted)
      return attend(q, new.keys, new.values, positions, new.positions, rule), new
    if q.shape[1] == 1:
      new = self.written(k, v, positions, ring_slot(positions[:, 0], self.initial, self.recent))
      return attend(q, new.keys, new.values, positions, new.positions, rule), new
    # Several tokens at once: the last ones overwrite what the first ones still see.
    seen_BS = jnp.concatenate([self.positions, positions], axis=1)
    keys, values = jnp.concatenate([self.keys, k], axis=2), jnp.concatenate([self.values, v], axis=2)
    near_BTS = seen_BS[:, None] > positions[:, :, None] - self.recent
    out = attend(q, keys, values, positions, seen_BS, rule, near_BTS | (seen_BS < self.initial)[:, None])
    held_BC = ring_positions(positions[:, -1] + 1, self.initial, self.recent)
    fresh_BC = (held_BC >= positions[:, :1]) & (held_BC != EMPTY)
    index_BC = jnp.where(fresh_BC, self.positions.shape[1] + held_BC - positions[:, :1], jnp.arange(held_BC.shape[1]))
    return out, self.replace(
      keys=take_slots(keys, index_BC),
      values=take_slots(values, index_BC),
      positions=jnp.take_along_axis(seen_BS, index_BC, axis=1),
    )

  def written(self, k_BKTH, v_BKTH, positions_BT, slot_B) -> 'Window':
    # The positions are one head of width 1.
    positions_BC = write_rows(self.positions[:, None, :, None], positions_BT[:, None, :, None], slot_B)[:, 0, :, 0]
    return self.replace(
      keys=write_rows(self.keys, k_BKTH, slot_B),
      values=write_rows(self.values, v_BKTH, slot_B),
      positions=positions_BC,
    )


@struct.dataclass
class LayeredCache:
  """One memory per layer, each of its own kind and size, behind the protocol of all caches."""

  layers: tuple[Any, ...]

  @property
  def fresh(self) -> bool:
    return False

  @property
  def nbytes(self) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    out, memory = self.layers[layer].attend(q, k, v, positions, rule)
    return out, LayeredCache(self.layers[:layer] + (memory,) + self.layers[layer + 1 :])

  @classmethod
  def of(cls, cache: FullCache) -> 'LayeredCache':
    """Returns the same memory, its arrays shared."""
    return cls(tuple(map(Everything, cache.keys, cache.values)))


def window_of(
  keys: Float[Array, 'B K S H'],
  values: Float[Array, 'B K S H'],
  lengths: Int[Array, ' B'],
  *,
  initial: int,
  recent: int,
  room: int | None,
) -> Window:
  """Returns the first `initial` and the latest `recent` of each row's first `lengths` tokens, none of them twice.

  A row with fewer tokens keeps all. `room` is for so many tokens to be appended; None makes the latest ones a ring.
  """
  lengths_B1 = lengths[:, None]
  if room is None:
    held_BC = ring_positions(lengths, initial, recent)
  else:
    slot_1C = jnp.arange(initial + recent + room)[None]
    start_B1 = jnp.maximum(initial, lengths_B1 - recent)
    held_BC = jnp.where(slot_1C < initial, slot_1C, start_B1 + slot_1C - initial)
    held_BC = jnp.where(held_BC < lengths_B1, held_BC, EMPTY)
  index_BC = jnp.minimum(held_BC, keys.shape[2] - 1)
  return Window(
    keys=take_slots(keys, index_BC),
    values=take_slots(values, index_BC),
    positions=held_BC,
    evicted=jnp.maximum(lengths - recent - initial, 0),
    initial=initial,
    recent=recent if room is None else None,
  )


def ring_slot(position_B, initial: int, recent: int):
  return jnp.where(position_B < initial, position_B, initial + (position_B - initial) % recent)


def ring_positions(lengths_B, initial: int, recent: int):
  """Returns [B, initial + recent]: the position that each slot holds after so many tokens, EMPTY for none."""
  slot_1C = jnp.arange(initial + recent)[None]
  last_B1 = lengths_B[:, None] - 1
  newest_BC = last_B1 - (last_B1 - slot_1C) % recent  # the latest position that has this slot
  held_BC = jnp.where(slot_1C < initial, slot_1C, newest_BC)
  there_BC = (held_BC <= last_B1) & ((slot_1C < initial) | (held_BC >= initial))
  return jnp.where(there_BC, held_BC, EMPTY)


def take_slots(x_BKSH, index_BC):
  return jnp.take_along_axis(x_BKSH, index_BC[:, None, :, None], axis=2)
