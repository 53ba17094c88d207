"""The exact memory of a layer: slots that know the positions of their tokens, so that any token may be missing.

Keys keep the rotation of their own positions, so distances to later queries stay what they were. A memory has R rows; `B`
queries use those that `rows` names (see jaxlm.caches.rows), so that the rows of several layers can be one array.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.caches.rows import heads_first, mix_rows, score_rows, write_rows
from jaxlm.models.attention import AttentionRule, attend_by, dot

EMPTY = 1 << 30  # The position of a slot without a token: in the future of every query, so that none sees it.


@struct.dataclass
class Slots:
  """The first `initial` tokens and others of a layer.

  Without `recent` new tokens are appended and nothing more is forgotten. With it the slots after the first are a ring of
  the latest `recent` tokens, the query's own included (https://arxiv.org/abs/2309.17453).
  """

  keys: jax.Array  # [R, K, C, H]
  values: jax.Array  # [R, K, C, H]
  positions: jax.Array  # [R, C] int32, or [R, K, C] where heads differ; EMPTY where there is no token
  evicted: jax.Array  # [R] int32, tokens forgotten so far: what a new token's position is ahead of its slot
  initial: int = struct.field(pytree_node=False, default=0)
  recent: int | None = struct.field(pytree_node=False, default=None)

  def attend(self, q, k, v, positions, rule: AttentionRule, rows=None):
    k, v = (heads_first(x).astype(self.keys.dtype) for x in (k, v))
    if self.recent is None or q.shape[1] == 1:
      memory = self.appended(k, v, positions, rows)
      return memory.attended(q, positions, rule, rows), memory
    seen_BS = of_rows(self.positions, rows)
    all_BS = jnp.concatenate([seen_BS, positions], axis=1)
    near_BTS = all_BS[:, None] > positions[:, :, None] - self.recent
    mask_BTS = near_BTS | (all_BS < self.initial)[:, None]
    products = (lambda q: score_rows(q, self.keys, rows)), (lambda w: mix_rows(w, self.values, rows))
    out = attend_beside(*products, q, k, v, positions, seen_BS, rule, mask_BTS)
    return out, append_each(self, k, v, positions, rows)

  def attended(self, q, positions, rule: AttentionRule, rows=None):
    """Returns the attention of queries over what is there."""
    products = (lambda q: score_rows(q, self.keys, rows)), (lambda w: mix_rows(w, self.values, rows))
    return attend_by(*products, q, self.keys.shape[1], positions, of_rows(self.positions, rows), rule)

  def appended(self, k_BKTH, v_BKTH, positions_BT, rows=None) -> 'Slots':
    """Adds tokens whose positions rise by one; to a ring one alone."""
    if self.recent is None:
      slot_B = positions_BT[:, 0] - of_rows(self.evicted, rows)
    else:
      slot_B = ring_slot(positions_BT[:, 0], self.initial, self.recent)
    # The positions are heads of width 1.
    by_head = self.positions.reshape(len(self.positions), -1, self.positions.shape[-1], 1)
    new = jnp.broadcast_to(
      positions_BT[:, None, :, None], (len(positions_BT), by_head.shape[1], positions_BT.shape[1], 1)
    )
    return self.replace(
      keys=write_rows(self.keys, k_BKTH, slot_B, rows),
      values=write_rows(self.values, v_BKTH, slot_B, rows),
      positions=write_rows(by_head, new, slot_B, rows).reshape(self.positions.shape),
    )


def of_rows(x, rows_B):
  return x if rows_B is None else x[rows_B]


def attend_beside(score, mix, q, k_BKTH, v_BKTH, positions_BT, seen, rule: AttentionRule, mask_BTS=None):
  """Attends over a memory and over the new tokens themselves, which are not in it yet; see `attend_by`."""
  K, S = k_BKTH.shape[1], seen.shape[-1]
  new = positions_BT if seen.ndim == 2 else jnp.broadcast_to(positions_BT[:, None], (len(seen), K, k_BKTH.shape[2]))
  both_score = lambda q: jnp.concatenate([score(q), dot(q, k_BKTH)], axis=-1)
  both_mix = lambda w: mix(w[..., :S]) + jnp.matmul(w[..., S:].astype(v_BKTH.dtype), v_BKTH).astype(jnp.float32)
  seen = jnp.concatenate([seen, new], axis=-1)
  return attend_by(both_score, both_mix, q, K, positions_BT, seen, rule, mask_BTS)


def append_each(memory: Any, k_BKTH, v_BKTH, positions_BT, rows=None) -> Any:
  """Appends tokens one after the other."""
  step = lambda memory, new: (memory.appended(new[0][:, :, None], new[1][:, :, None], new[2][:, None], rows), None)
  each = (jnp.moveaxis(k_BKTH, 2, 0), jnp.moveaxis(v_BKTH, 2, 0), positions_BT.T)
  return jax.lax.scan(step, memory, each)[0]


def everything_of(keys: Float[Array, 'B K S H'], values: Float[Array, 'B K S H'], lengths: Int[Array, ' B']) -> Slots:
  """Returns the memory of all tokens, the first `lengths` of each row; its slots are their positions."""
  slot_1S = jnp.arange(keys.shape[2])[None]
  positions_BS = jnp.where(slot_1S < lengths[:, None], slot_1S, EMPTY)
  return Slots(keys, values, positions_BS, jnp.zeros_like(lengths))


def window_of(
  keys: Float[Array, 'B K S H'],
  values: Float[Array, 'B K S H'],
  lengths: Int[Array, ' B'],
  *,
  initial: int,
  recent: int,
  room: int | None,
) -> Slots:
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
  return Slots(
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


def take_slots(x_BKSH, index):
  """Returns the slots that `index` [B, C], or [B, K, C] of each head, names."""
  index = index[:, None] if index.ndim == 2 else index
  return jnp.take_along_axis(x_BKSH, index[..., None], axis=2)
