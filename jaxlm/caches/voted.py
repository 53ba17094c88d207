"""Keeps only the prompt tokens to which each head attends most: SnapKV and H2O.

A token's votes are the attention that it receives, summed over queries: over the prompt's last queries (SnapKV,
https://arxiv.org/abs/2404.14469) or over all of them (H2O, https://arxiv.org/abs/2306.14048). Both evict tokens once, after
the prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention import mass
from jaxlm.attention.attend import attention_weights
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.full import FullCache
from jaxlm.caches.rows import heads_first
from jaxlm.caches.slots import EMPTY, Slots, take_slots

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

CHUNK = 256  # Number of queries whose weights are in memory at the same time.


@struct.dataclass
class Voted:
  """Wraps a full cache and sums the attention that each token receives from each row's last `queries` queries before `ends`."""

  cache: Any  # FullCache, or one that wraps it
  ends: jax.Array  # [B] int32, the slot after the last query that votes
  votes: tuple[jax.Array, ...]  # per layer [B, K, S] float32, zeros at first; mean over the query heads of a key head
  queries: int | None = struct.field(pytree_node=False, default=None)  # Number of queries that vote; None: all.

  @classmethod
  def create(cls, cache: Any, ends_B, queries: int | None = None) -> 'Voted':
    return cls(cache, ends_B, tuple(jnp.zeros(x.shape[:3], jnp.float32) for x in cache.whole.keys), queries)

  @property
  def fresh(self) -> bool:
    return self.cache.fresh

  @property
  def nbytes(self) -> int:
    return self.cache.nbytes

  @property
  def whole(self) -> FullCache:
    return self.cache.whole

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    empty, T = self.cache.whole.empty[layer], q.shape[1]
    out, cache = self.cache.attend(layer, q, k, v, positions, rule)
    start_B1 = jnp.zeros_like(positions[:, :1]) if empty else positions[:, :1]
    if self.queries is None:
      slot_BM = start_B1 + jnp.arange(T)[None]
    else:
      slot_BM = self.ends[:, None] - self.queries + jnp.arange(self.queries)[None]
    index_BM = slot_BM - start_B1
    valid_BM = (index_BM >= 0) & (index_BM < T) & (slot_BM >= 0) & (slot_BM < self.ends[:, None])
    keys = heads_first(k).astype(cache.whole.keys[layer].dtype) if empty else cache.whole.keys[layer]
    if empty and self.queries is None and q.dtype == keys.dtype and mass.is_default(rule, T):
      received = mass.received(q, heads_first(keys), rule, valid_BM.astype(jnp.float32)).columns
      votes = received[..., int(rule.has_slot) :].reshape(*keys.shape[:2], -1, T).mean(axis=2)
      return out, self.voted(layer, cache, votes)
    key_slot_1S = jnp.arange(keys.shape[2])[None]

    def piece(start):
      cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, min(CHUNK, x.shape[1]), 1)
      at_BC = cut(index_BM)
      q_BCNH = jnp.take_along_axis(q, jnp.clip(at_BC, 0, T - 1)[:, :, None, None], axis=1)
      weights_BKGCS, _ = attention_weights(q_BCNH, keys, cut(slot_BM), key_slot_1S, rule)
      counted = jnp.where(cut(valid_BM)[:, None, None, :, None], weights_BKGCS, 0.0)
      return counted.sum(axis=(2, 3)) / weights_BKGCS.shape[2]

    M = slot_BM.shape[1]
    if M > CHUNK:
      pad = ((0, 0), (0, -M % CHUNK))
      slot_BM, index_BM, valid_BM = (jnp.pad(x, pad) for x in (slot_BM, index_BM, valid_BM))
      start_C = jnp.arange(0, M, CHUNK)
      votes = jax.lax.scan(
        lambda total, start: (total + piece(start), None), jnp.zeros(keys.shape[:3], jnp.float32), start_C
      )[0]
    else:
      votes = piece(0)
    return out, self.voted(layer, cache, votes)

  def voted(self, layer: int, cache, votes_BKS) -> 'Voted':
    """Returns the wrapper of the grown `cache`, with more votes for its first S slots of a layer."""
    votes = self.votes[layer].at[:, :, : votes_BKS.shape[2]].add(votes_BKS)
    return self.replace(cache=cache, votes=self.votes[:layer] + (votes,) + self.votes[layer + 1 :])


def heavy_of(
  keys: Float[Array, 'B K S H'],
  values: Float[Array, 'B K S H'],
  lengths: Int[Array, ' B'],
  votes: Float[Array, 'B K S'],
  *,
  total: int,
  recent: int,
  pool: int,
  room: int,
) -> Slots:
  """Returns a memory of `total` tokens: the latest `recent` ones of each row and, per head, those with the most votes.

  Args:
    pool: votes are first max-pooled over this many neighbouring tokens, so that words stay whole (1: no pooling).
    room: number of free slots for appended tokens.
  """
  slot_11S, length_B11 = jnp.arange(keys.shape[2])[None, None], lengths[:, None, None]
  old = slot_11S < length_B11 - recent
  votes = jnp.where(old, votes, 0.0)  # The latest tokens are always kept; their votes must not help their neighbours.
  if pool > 1:
    votes = jax.lax.reduce_window(votes, -jnp.inf, jax.lax.max, (1, 1, pool), (1, 1, 1), 'SAME')
  rank = jnp.where(old, votes, jnp.where(slot_11S < length_B11, jnp.inf, -jnp.inf))
  kept_BKC = jnp.sort(jax.lax.top_k(rank, min(total, keys.shape[2]))[1], axis=-1)
  more = total - kept_BKC.shape[2] + room
  widen = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), *((0, 0),) * (x.ndim - 3)))
  positions = jnp.where(kept_BKC < length_B11, kept_BKC, EMPTY)
  return Slots(
    keys=widen(take_slots(keys, kept_BKC)),
    values=widen(take_slots(values, kept_BKC)),
    positions=jnp.pad(positions, ((0, 0), (0, 0), (0, more)), constant_values=EMPTY),
    evicted=jnp.maximum(lengths - total, 0),
  )
