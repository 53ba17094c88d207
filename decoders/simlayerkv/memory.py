"""SimLayerKV's memory strategy: it finds the lazy layers of each row and cuts their caches."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders.simlayerkv import layerwise
from decoders.simlayerkv.config import LazyConfig, exempt, select_lazy
from decoders.state import DecodeState
from decoders.strategies import Plan, WholeMemory
from jaxlm.caches.full import FullCache
from jaxlm.caches.layered import LayeredCache, pooled
from jaxlm.caches.packed import pack
from jaxlm.caches.scored import UNSCORED, Scored
from jaxlm.caches.slots import everything_of, window_of
from jaxlm.caches.voted import Voted, heavy_of
from jaxlm.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Score:
  """Wraps a cache so that it records lazy ratios. It is compared by value, so that equal ones share compiled programs."""

  initial: int
  recent: int
  queries: int
  include_self: bool
  layers: int
  before: int
  """Number of slots before the first token: 1 with a sink token, otherwise 0."""
  voting: bool = False
  """Whether votes for single tokens are recorded too."""
  voters: int | None = None

  @classmethod
  def of(cls, lazy: LazyConfig, config: ModelConfig) -> 'Score':
    return cls(
      initial=lazy.n_initial,
      recent=lazy.score_recent or lazy.n_recent,
      queries=lazy.n_last,
      include_self=lazy.include_self,
      layers=config.num_layers,
      before=int(config.sink.kind == 'token'),
      voting=lazy.keep != 'window',
      voters=lazy.n_observed if lazy.keep == 'snapkv' else None,
    )

  def __call__(self, cache: FullCache, lengths_B) -> Scored:
    zeros, ends_B = jnp.zeros((lengths_B.shape[0], self.layers), jnp.float32), lengths_B + self.before
    wrapped = Voted.create(cache, ends_B, self.voters) if self.voting else cache
    return Scored(wrapped, ends_B, zeros, self.initial, self.recent, self.queries, self.include_self)


@dataclasses.dataclass(frozen=True)
class Keep:
  """Cuts a layer's full cache. It is compared by value, so that equal ones share compiled programs."""

  lazy: LazyConfig
  room: int
  """Number of tokens that will be appended."""

  def __call__(self, cut: bool, keys_BKSH, values_BKSH, lengths_B, votes_BKS) -> Any:
    c = self.lazy
    if not cut:
      memory = everything_of(keys_BKSH, values_BKSH, lengths_B)
    elif c.keep == 'window':
      room = None if c.growth == 'ring' else self.room
      memory = window_of(keys_BKSH, values_BKSH, lengths_B, initial=c.n_initial, recent=c.n_recent, room=room)
    else:
      recent, pool = (c.n_observed, 7) if c.keep == 'snapkv' else (c.kept // 2, 1)
      sizes = {'total': c.kept, 'recent': recent, 'pool': pool, 'room': self.room}
      memory = heavy_of(keys_BKSH, values_BKSH, lengths_B, votes_BKS, **sizes)
    return memory if c.quant is None else pack(memory, lengths_B, c.quant)


@functools.partial(jax.jit, static_argnames=('keep', 'cut'))
def compact(keys_BKSH, values_BKSH, lengths_B, votes_BKS, *, keep: Keep, cut: bool) -> Any:
  """Returns the cache that one layer keeps."""
  return keep(cut, keys_BKSH, values_BKSH, lengths_B, votes_BKS)


@functools.partial(jax.jit, static_argnames=('keep', 'cut'))
def compact_row(keys_BKSH, values_BKSH, lengths_B, votes_BKS, row, *, keep: Keep, cut: bool) -> Any:
  """Returns the cache that one layer keeps for one row."""
  one = lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=True)
  return keep(cut, *jax.tree.map(one, (keys_BKSH, values_BKSH, lengths_B, votes_BKS)))


@jax.jit
def take_rows(tree, rows):
  return jax.tree.map(lambda x: x[rows], tree)


class LazyMemory(WholeMemory):
  """Finds the lazy layers of each row and cuts their caches.

  Raises:
    ValueError: attention weights that can be negative, for which no lazy ratio is defined; layers or groups that do not fit the
      model.
  """

  def __init__(self, lazy: LazyConfig, config: ModelConfig):
    if config.attention in UNSCORED:
      raise ValueError(f'attention={config.attention!r} has negative weights, for which no lazy ratio is defined.')
    exempt(lazy, config)
    if lazy.quant is not None:
      lazy.quant.check_head_dim(config.head_dim)
    self.lazy, self.config = lazy, config
    self.score = Score.of(lazy, config)
    if lazy.stage == 'prefill':
      self.wrap = self.score
    self.ratios: list[np.ndarray] = []
    self.lazy_layers: list[list[int]] = []
    self.full_bytes = self.kept_bytes = 0

  def read(self, clock, lm, padded, total_B, plan: Plan):
    if self.lazy.prefill != 'layerwise':
      return super().read(clock, lm, padded, total_B, plan)
    room = self.growth(int((np.asarray(total_B) - padded.lengths).max()), plan)
    return layerwise.prefill(
      clock,
      lm,
      padded,
      total_B,
      plan.slots,
      self.lazy,
      self.score,
      functools.partial(compact, keep=Keep(self.lazy, room)),
    )

  def compress(
    self, state: DecodeState, advance: Callable, config: ModelConfig, plan: Plan
  ) -> list[tuple[np.ndarray, DecodeState]]:
    rows_R = np.arange(len(state.lengths))
    if self.lazy.stage == 'decode':
      state = advance(state.replace(cache=self.score(state.cache, state.position + 1)), 1, rows_R)
    lengths_R = np.asarray(state.position) + self.score.before
    ratios_RL = np.asarray(state.cache.ratios)
    if self.lazy.prefill == 'layerwise':  # The layers are cut already, the same ones in every row.
      self.note(ratios_RL, np.tile(state.cache.lazy, (len(rows_R), 1)), state.cache.full_bytes, state.cache.nbytes)
      return [(rows_R, state.replace(cache=state.cache.cache))]
    if self.lazy.stage == 'decode' and bool(jnp.all(state.done)):  # No step was taken, so nothing was scored.
      lengths_R, ratios_RL = np.zeros_like(lengths_R), np.zeros_like(ratios_RL)
    lazy_RL = select_lazy(ratios_RL, lengths_R, self.lazy, config)
    parts = self.cut(state, lazy_RL, lengths_R, plan)
    self.note(ratios_RL, lazy_RL, state.cache.nbytes, sum(part.cache.nbytes for _, part in parts))
    return parts

  def note(self, ratios_RL, lazy_RL, full_bytes: int, kept_bytes: int) -> None:
    self.ratios += list(ratios_RL)
    self.lazy_layers += [np.flatnonzero(row).tolist() for row in lazy_RL]
    if full_bytes > self.full_bytes:
      self.full_bytes, self.kept_bytes = full_bytes, kept_bytes

  def cut(
    self, state: DecodeState, lazy_RL: np.ndarray, lengths_R: np.ndarray, plan: Plan
  ) -> list[tuple[np.ndarray, DecodeState]]:
    """Returns (rows, their state) for each group of rows that is decoded together, with cut caches; deletes the whole cache."""
    rows_R, votes = np.arange(len(lazy_RL)), state.cache.votes
    state = state.replace(cache=state.cache.whole)
    cache = state.cache
    if not lazy_RL.any() and self.lazy.quant is None:
      return [(rows_R, state)]  # The cache stays whole, so plain decoding's program is used.
    keep, lengths = Keep(self.lazy, self.growth(state.tokens.shape[1], plan)), jnp.asarray(lengths_R, jnp.int32)
    delete = lambda layer: (cache.keys[layer].delete(), cache.values[layer].delete())
    if self.lazy.layout == 'pooled':

      def row(layer: int, b: int):
        arrays = cache.keys[layer], cache.values[layer], lengths, votes[layer]
        return compact_row(*arrays, jnp.int32(b), keep=keep, cut=bool(lazy_RL[b, layer]))

      return [(rows_R, state.replace(cache=pooled(lazy_RL.T.astype(int), 2, row, delete)))]
    patterns, group_R = np.unique(lazy_RL, axis=0, return_inverse=True)
    parts = []
    for group, lazy_L in enumerate(patterns):
      members = np.flatnonzero(group_R.reshape(-1) == group)
      part, part_votes = state, votes
      if len(members) < len(rows_R):
        part, part_votes = take_rows((state, votes), jnp.asarray(members))
      layers = []
      for layer, lazy in enumerate(lazy_L.tolist()):
        arrays = part.cache.keys[layer], part.cache.values[layer]
        kept = compact(*arrays, lengths[members], part_votes[layer], keep=keep, cut=lazy)
        layers.append(jax.block_until_ready(kept))
        for x in arrays:
          x.delete()
      parts.append((members, part.replace(cache=LayeredCache(tuple(layers)))))
    if len(parts) > 1:
      for layer in range(len(cache.keys)):
        delete(layer)
    return parts

  def stats(self) -> dict[str, Any]:
    return {
      'lazy_layers': self.lazy_layers,
      'lazy_ratios': [row.round(4).tolist() for row in self.ratios],
      'kv_bytes_full': self.full_bytes,
      'compression': self.full_bytes / max(self.kept_bytes, 1),
    }
