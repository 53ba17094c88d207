"""Unquantised memory of one layer. Each slot stores the position of its token, so any token can be evicted.

Keys keep the rotation of their original positions, so distances to later queries do not change. A memory has R rows; query b
uses row `rows[b]` (see jaxlm.caches.rows), so that one array can hold the rows of several layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention import cached
from jaxlm.attention.attend import attend_by, dot
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import sizes
from jaxlm.caches.rows import heads_first, mix_rows, score_rows, write_rows
from jaxlm.config import ModelConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

EMPTY = 1 << 30  # Position of a slot without a token. It is in the future of every query, so a causal rule hides it.


@struct.dataclass
class Slots:
  """Keys and values of the first `initial` tokens and of other tokens of a layer.

  If `recent` is None, new tokens are appended and no token is evicted. Otherwise the slots after the first `initial` are a
  ring, and queries see the latest `recent` tokens, their own included (https://arxiv.org/abs/2309.17453). Each slot beyond
  `initial` + `recent` allows one token to be rejected: decoding continues from an earlier position.
  """

  keys: jax.Array  # [R, K, C, H]
  values: jax.Array  # [R, K, C, H]
  positions: jax.Array  # [R, C] int32, or [R, K, C] where heads differ; EMPTY where there is no token
  evicted: jax.Array  # [R] int32, number of evicted tokens; a new token's slot is its position minus this
  initial: int = struct.field(pytree_node=False, default=0)
  recent: int | None = struct.field(pytree_node=False, default=None)

  @classmethod
  def ring(cls, config: ModelConfig, batch: int, *, recent: int, initial: int = 0, dtype=None) -> 'Slots':
    """Returns an empty ring for one layer of `batch` rows. It always has `initial` + `recent` slots.

    Args:
      recent: number of latest tokens that each query sees, its own included.
      initial: number of first tokens that every query sees too, a model's sink token included.
      dtype: dtype of keys and values; None: the model's.

    Raises:
      ValueError: `recent` is less than 1 or `initial` negative, or the model is not causal.
    """
    config.check_causal('Remembering the latest tokens')
    if recent < 1 or initial < 0:
      raise ValueError(f'{recent=} must be at least 1, as a token sees itself, and {initial=} at least 0.')
    C = initial + recent
    zeros = lambda: jnp.zeros((batch, config.num_kv_heads, C, config.head_dim), dtype or config.dtype)
    positions = jnp.full((batch, C), EMPTY, jnp.int32)
    return cls(zeros(), zeros(), positions, jnp.zeros(batch, jnp.int32), initial, recent)

  @property
  def heads(self) -> int:
    return self.keys.shape[1]

  @property
  def exact(self) -> bool:
    return True

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    rows, _, slots, _ = self.keys.shape
    seen = '' if self.recent is None else f', a ring: the first {self.initial} and the latest {self.recent} tokens'
    return sizes.line(self, f'{rows} rows of {slots} slots{seen}')

  def read(self, q, positions, rule: AttentionRule, rows=None, lengths=None):
    """Returns the attention of queries over tokens before `lengths` [B]; see `jaxlm.caches.protocol.Readable`."""
    seen = of_rows(self.positions, rows)
    if (kernel_rule := self.for_kernel(rule, q)) is not None:
      return self.through_kernel(q, positions, kernel_rule, rows, seen, end_B=lengths)
    return self.attended(q, positions, rule, rows, held(seen, lengths))

  def attended(self, q, positions, rule: AttentionRule, rows=None, mask=None):
    """Returns the attention of queries over the stored tokens; `mask` is that of `attend_by`."""
    seen = of_rows(self.positions, rows)
    if mask is None and (kernel_rule := self.for_kernel(rule, q)) is not None:
      return self.through_kernel(q, positions, kernel_rule, rows, seen)
    mask = both(self.near(seen, positions), mask)
    return attend_by(*self.products(rows), q, self.heads, positions, seen, rule, mask)

  def for_kernel(self, rule: AttentionRule, q) -> AttentionRule | None:
    """Returns the rule that the ring's window makes of another, or None if `jaxlm.attention.cached` does not compute it."""
    if not cached.is_default(rule, q) or (self.recent is not None and not rule.causal):
      return None
    if self.recent is None:
      return rule
    if rule.window is None:
      return rule.replace(window=self.recent)
    # The first tokens of a ring are exempt from its own window, and not from the rule's.
    return None if self.initial else rule.replace(window=min(rule.window, self.recent))

  def through_kernel(self, q, positions, rule: AttentionRule, rows, seen, end_B=None, beside=None):
    """Returns the attention of queries over the stored tokens before position `end_B`, and over tokens beside them."""
    used_B = None if self.recent is not None else filled(seen)
    if end_B is not None:
      seen = jnp.where(held(seen, end_B).squeeze(-2), seen, EMPTY)
    initial = 0 if self.recent is None else self.initial
    return cached.attend(
      q, self.keys, self.values, positions, rule, key_positions=seen, lengths=used_B, rows=rows, beside=beside, initial=initial
    )  # fmt: skip

  def near(self, seen_BS, positions_BT):
    """Returns which tokens the ring does not hide from each query, bool [B, T, S]; None: it hides none."""
    if self.recent is None:
      return None
    return (seen_BS[:, None] > positions_BT[:, :, None] - self.recent) | (seen_BS < self.initial)[:, None]

  def attended_beside(self, q, positions, new: 'New', rule: AttentionRule, rows=None):
    """Returns the attention of queries over the stored tokens and over `new` tokens, which are not stored."""
    seen = of_rows(self.positions, rows)
    if (kernel_rule := self.for_kernel(rule, q)) is not None:
      tokens = cached.tokens(new.keys, new.values, new.positions, new.seen)
      return self.through_kernel(q, positions, kernel_rule, rows, seen, new.positions[:, 0], tokens)
    near = self.near(seen if self.recent is None else jnp.concatenate([seen, new.positions], axis=1), positions)
    return beside(*self.products(rows), q, positions, new, seen, rule, near)

  def products(self, rows=None):
    """Returns the two functions that `attend_by` takes."""
    return (lambda q: score_rows(q, self.keys, rows)), (lambda w: mix_rows(w, self.values, rows))

  def appended(self, k, v, positions, rows=None, mask=None) -> 'Slots':
    """Returns the memory with tokens [B, T, K, H] added; positions rise by one. `mask` [B, T]: the tokens to add; None: all.

    If the memory is not a ring and a row adds any token, its tokens outside `mask` write garbage into the next free slots;
    later tokens overwrite it.
    """
    k, v = (heads_first(x).astype(self.keys.dtype) for x in (k, v))
    if self.recent is not None:
      return append_each(self, k, v, positions, rows, mask)
    mask = None if mask is None else mask.any(axis=1)
    return self.written(k, v, positions, positions[:, 0] - of_rows(self.evicted, rows), rows, mask)

  def appended_one(self, k_BK1H, v_BK1H, positions_B1, rows, mask) -> 'Slots':
    slot_B = ring_slot(positions_B1[:, 0], self.initial, self.keys.shape[2] - self.initial)
    return self.written(k_BK1H, v_BK1H, positions_B1, slot_B, rows, mask)

  def written(self, k_BKTH, v_BKTH, positions_BT, slot_B, rows, mask) -> 'Slots':
    return self.replace(
      keys=write_rows(self.keys, k_BKTH, slot_B, rows, mask),
      values=write_rows(self.values, v_BKTH, slot_B, rows, mask),
      positions=write_positions(self.positions, positions_BT, slot_B, rows, mask),
    )


def write_positions(positions, new_BT, slot_B, rows, mask):
  """Returns `positions` with new ones written by `write_rows`, as if they were keys of head size 1."""
  by_head = positions.reshape(len(positions), -1, positions.shape[-1], 1)
  new = jnp.broadcast_to(
    new_BT.astype(positions.dtype)[:, None, :, None], (len(new_BT), by_head.shape[1], new_BT.shape[1], 1)
  )
  return write_rows(by_head, new, slot_B, rows, mask).reshape(positions.shape)


def extend(memory: Any, q, k, v, positions, rule: AttentionRule, valid=None) -> tuple[jax.Array, Any]:
  """Returns the attention of new tokens, and the memory with those in `valid` [B, T] added; None: all."""
  if q.shape[1] == 1:  # A single token is written before attention, which then reads only the memory.
    memory = memory.appended(k, v, positions, mask=valid)
    return memory.attended(q, positions, rule), memory
  return memory.attended_beside(q, positions, New(k, v, positions), rule), memory.appended(k, v, positions, mask=valid)


def of_rows(x, rows_B):
  return x if rows_B is None else x[rows_B]


def held(positions, lengths_B=None) -> Bool[Array, '...']:
  """Returns which slots hold a token, [B, 1, S], or [B, K, 1, S] by head. With `lengths`, tokens at later positions do not count."""
  end = EMPTY if lengths_B is None else lengths_B.reshape(-1, *(1,) * (positions.ndim - 1))
  return (positions < end)[..., None, :]


def filled(positions) -> Int[Array, ' B']:
  """Returns the number of filled slots, which are the first ones unless the memory is a ring. All heads hold as many tokens."""
  return (positions != EMPTY).sum(axis=-1, dtype=jnp.int32).reshape(len(positions), -1)[:, 0]


def both(mask, other):
  """Returns the conjunction of two masks; None stands for a mask that is true everywhere."""
  return mask if other is None else other if mask is None else mask & other


@struct.dataclass
class New:
  """N tokens that are not stored in a memory. Stored tokens at or after the position of the first of them are hidden."""

  keys: jax.Array  # [B, N, K, H]
  values: jax.Array  # [B, N, K, H]
  positions: jax.Array  # [B, N] int32
  seen: jax.Array | None = None  # [B, T, N] bool: those that each query may see; None: the causal ones


def beside(score, mix, q, positions_BT, new: New, seen, rule: AttentionRule, near=None):
  """Returns attention over a memory and over new tokens; see `attend_by`. `near` is a mask for the memory, or for both."""
  k_BKNH, v_BKNH = heads_first(new.keys), heads_first(new.values)
  K, S, N = k_BKNH.shape[1], seen.shape[-1], k_BKNH.shape[2]
  positions = new.positions
  positions = positions if seen.ndim == 2 else jnp.broadcast_to(positions[:, None], (len(seen), K, N))
  # Padding and rejected tokens have the positions of the new tokens; they are hidden.
  seen = jnp.where(seen < positions[..., :1], seen, EMPTY)
  both_score = lambda q: jnp.concatenate([score(q), dot(q, k_BKNH)], axis=-1)
  both_mix = lambda w: mix(w[..., :S]) + jnp.matmul(w[..., S:].astype(v_BKNH.dtype), v_BKNH).astype(jnp.float32)
  mask_BTS = near
  if new.seen is not None:
    mask_BTS = jnp.pad(new.seen, ((0, 0), (0, 0), (S, 0)), constant_values=True)
    mask_BTS = both(mask_BTS, near)
  seen = jnp.concatenate([seen, positions], axis=-1)
  return attend_by(both_score, both_mix, q, K, positions_BT, seen, rule, mask_BTS)


def append_each(memory: Any, k_BKTH, v_BKTH, positions_BT, rows, mask) -> Any:
  """Returns the memory with tokens appended one after the other."""
  if positions_BT.shape[1] == 1:
    return memory.appended_one(k_BKTH, v_BKTH, positions_BT, rows, None if mask is None else mask[:, 0])

  def step(memory, new):
    k_BKH, v_BKH, position_B, mask_B = new
    return memory.appended_one(k_BKH[:, :, None], v_BKH[:, :, None], position_B[:, None], rows, mask_B), None

  mask_TB = None if mask is None else mask.T
  each = (jnp.moveaxis(k_BKTH, 2, 0), jnp.moveaxis(v_BKTH, 2, 0), positions_BT.T, mask_TB)
  return jax.lax.scan(step, memory, each)[0]


def everything_of(keys: Float[Array, 'B K S H'], values: Float[Array, 'B K S H'], lengths: Int[Array, ' B']) -> Slots:
  """Returns a memory of the first `lengths` tokens of each row; a token's slot is its position."""
  slot_1S = jnp.arange(keys.shape[2], dtype=jnp.int32)[None]
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
  spare: int = 0,
) -> Slots:
  """Returns a memory of the first `initial` and the latest `recent` of each row's `lengths` tokens, without repetition.

  A row with fewer tokens keeps all. `room` is the number of free slots for appended tokens. If it is None, the latest tokens
  are a ring with `spare` more slots, which allow so many tokens to be rejected.
  """
  lengths_B1 = lengths[:, None]
  if room is None:
    held_BC = ring_positions(lengths, initial, recent + spare)
  else:
    slot_1C = jnp.arange(initial + recent + room, dtype=jnp.int32)[None]
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


def ring_slot(position_B, initial: int, size: int):
  return jnp.where(position_B < initial, position_B, initial + (position_B - initial) % size)


def ring_positions(lengths_B, initial: int, size: int):
  """Returns the position of the token in each slot of a ring after `lengths_B` tokens, [B, initial + size]; EMPTY for none."""
  slot_1C = jnp.arange(initial + size, dtype=jnp.int32)[None]
  last_B1 = lengths_B[:, None] - 1
  newest_BC = last_B1 - (last_B1 - slot_1C) % size  # the latest position that is stored in this slot
  held_BC = jnp.where(slot_1C < initial, slot_1C, newest_BC)
  there_BC = (held_BC <= last_B1) & ((slot_1C < initial) | (held_BC >= initial))
  return jnp.where(there_BC, held_BC, EMPTY)


def take_slots(x_BKSH, index):
  """Returns the entries at the slots `index`, [B, C], or [B, K, C] if they differ by head."""
  index = index[:, None] if index.ndim == 2 else index
  return jnp.take_along_axis(x_BKSH, index[..., None], axis=2)
