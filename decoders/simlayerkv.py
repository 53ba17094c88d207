"""SimLayerKV (https://arxiv.org/abs/2410.13846): layers that only look at the first and the latest tokens keep only those.

  out = decoders.simlayerkv.generate(lm, prompts, lazy=LazyConfig(threshold=0.9))

The prompt is read with a full cache, each layer's lazy ratio is measured, and the lazy layers' caches are replaced by
smaller ones and deleted. Decoding is plain decoding over what is left. With `stage='decode'` the first two generated
tokens are those of the full cache, with `stage='prefill'` the first.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders.lazy import PRESETS as PRESETS
from decoders.lazy import THRESHOLDS as THRESHOLDS
from decoders.lazy import LazyConfig as LazyConfig
from decoders.lazy import cache_bytes as cache_bytes
from decoders.lazy import compression_ratio as compression_ratio
from decoders.lazy import exempt, select_lazy
from decoders.lazy import preset as preset
from decoders.output import Output
from decoders.plain import DecodeState, WholeMemory
from decoders.plain import generate as generate_plain
from jaxlm.cache_config import KiviConfig as KiviConfig
from jaxlm.caches.full import FullCache
from jaxlm.caches.layered import LayeredCache, pooled
from jaxlm.caches.packed import pack
from jaxlm.caches.scored import UNSCORED, Scored
from jaxlm.caches.slots import everything_of, window_of
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel


def generate(
  lm: LanguageModel,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  max_new_tokens: int = 64,
  lazy: LazyConfig = LazyConfig(),
  **options,
) -> Output:
  """Continues each prompt with the caches of its lazy layers cut down.

  Args:
    prompts, max_new_tokens: as for `decoders.generate`.
    lazy: which layers are lazy, and what they keep.
    options: all other arguments of `decoders.generate`.

  Raises:
    ValueError: as `decoders.generate`; attention weights that can be negative, so that no share of them is a ratio;
      activations that are not finite; layers, budgets or groups that do not fit the model.
  """
  if lm.config.attention in UNSCORED:
    raise ValueError(f'attention={lm.config.attention!r} has negative weights: how lazy a layer is has no meaning.')
  exempt(lazy, lm.config)
  if lazy.quant is not None:
    lazy.quant.check_head_dim(lm.config.head_dim)
  return generate_plain(lm, prompts, max_new_tokens=max_new_tokens, memory=LazyMemory(lazy, lm.config), **options)


@dataclasses.dataclass(frozen=True)
class Score:
  """Wraps a cache so that it notes lazy ratios. A value, so that programs are compiled once for equal ones."""

  initial: int
  recent: int
  queries: int
  include_self: bool
  layers: int
  before: int
  """Slots before the first token."""

  def __call__(self, cache: FullCache, lengths_B) -> Scored:
    zeros = jnp.zeros((lengths_B.shape[0], self.layers), jnp.float32)
    return Scored(cache, lengths_B + self.before, zeros, self.initial, self.recent, self.queries, self.include_self)


class LazyMemory(WholeMemory):
  """Finds the lazy layers of each row and cuts their caches down."""

  def __init__(self, lazy: LazyConfig, config: ModelConfig):
    self.lazy = lazy
    self.score = Score(
      initial=lazy.n_initial,
      recent=lazy.score_recent or lazy.n_recent,
      queries=lazy.n_last,
      include_self=lazy.include_self,
      layers=config.num_layers,
      before=int(config.sink.kind == 'token'),
    )
    if lazy.stage == 'prefill':
      self.wrap = self.score
    self.ratios: list[np.ndarray] = []
    self.lazy_layers: list[list[int]] = []
    self.full_bytes = self.kept_bytes = 0

  def settle(self, state: DecodeState, advance: Callable, config: ModelConfig) -> list[tuple[np.ndarray, DecodeState]]:
    rows_R = np.arange(len(state.lengths))
    if self.lazy.stage == 'decode':
      state = advance(state.replace(cache=self.score(state.cache, state.position)), 1, rows_R)
    lengths_R = np.asarray(state.position) + self.score.before
    ratios_RL, cache = np.asarray(state.cache.ratios), state.cache.cache
    state = state.replace(cache=cache)
    if self.lazy.stage == 'decode' and bool(jnp.all(state.done)):  # No step was taken, or no further one will be.
      ratios_RL = np.nan_to_num(ratios_RL)
    lazy_RL = select_lazy(ratios_RL, lengths_R, self.lazy, config)
    self.ratios += list(ratios_RL)
    self.lazy_layers += [np.flatnonzero(row).tolist() for row in lazy_RL]
    full_bytes = cache.nbytes
    parts = self.parts(state, lazy_RL, lengths_R)
    kept_bytes = sum(part.cache.nbytes for _, part in parts)
    if full_bytes > self.full_bytes:
      self.full_bytes, self.kept_bytes = full_bytes, kept_bytes
    return parts

  def parts(
    self, state: DecodeState, lazy_RL: np.ndarray, lengths_R: np.ndarray
  ) -> list[tuple[np.ndarray, DecodeState]]:
    """Returns (rows, their state) of what is decoded together, the caches cut down; the whole cache is deleted."""
    rows_R, cache = np.arange(len(lazy_RL)), state.cache
    if not lazy_RL.any() and self.lazy.quant is None:
      return [(rows_R, state)]  # And so the program is plain decoding's.
    kept = self.kept(state)
    lengths = jnp.asarray(lengths_R, jnp.int32)
    delete = lambda layer: (cache.keys[layer].delete(), cache.values[layer].delete())
    if self.lazy.layout == 'pooled':
      row = lambda l, b: compact_row(
        cache.keys[l], cache.values[l], lengths, jnp.int32(b), lazy=bool(lazy_RL[b, l]), **kept
      )
      return [(rows_R, state.replace(cache=pooled(lazy_RL.T.astype(int), 2, row, delete)))]
    patterns, group_R = np.unique(lazy_RL, axis=0, return_inverse=True)
    parts = []
    for group, lazy_L in enumerate(patterns):
      members = np.flatnonzero(group_R.reshape(-1) == group)
      part = state if len(members) == len(rows_R) else take_rows(state, jnp.asarray(members))
      layers = []
      for layer, lazy in enumerate(lazy_L.tolist()):
        arrays = part.cache.keys[layer], part.cache.values[layer]
        layers.append(jax.block_until_ready(compact(*arrays, lengths[members], lazy=lazy, **kept)))
        for x in arrays:
          x.delete()
      parts.append((members, part.replace(cache=LayeredCache(tuple(layers)))))
    if len(parts) > 1:
      for layer in range(len(cache.keys)):
        delete(layer)
    return parts

  def kept(self, state: DecodeState) -> dict[str, Any]:
    """Returns the static arguments of `compact`."""
    lazy = self.lazy
    room = None if lazy.growth == 'ring' else state.tokens.shape[1]
    return {'initial': lazy.n_initial, 'recent': lazy.n_recent, 'room': room, 'quant': lazy.quant}

  def stats(self) -> dict[str, Any]:
    return {
      'lazy_layers': self.lazy_layers,
      'lazy_ratios': [row.round(4).tolist() for row in self.ratios],
      'kv_bytes_full': self.full_bytes,
      'compression': self.full_bytes / max(self.kept_bytes, 1),
    }


KEPT = ('lazy', 'initial', 'recent', 'room', 'quant')


@functools.partial(jax.jit, static_argnames=KEPT)
def compact(keys_BKSH, values_BKSH, lengths_B, *, lazy: bool, initial: int, recent: int, room, quant) -> Any:
  """Returns what one layer keeps of its full cache."""
  if lazy:
    memory = window_of(keys_BKSH, values_BKSH, lengths_B, initial=initial, recent=recent, room=room)
  else:
    memory = everything_of(keys_BKSH, values_BKSH, lengths_B)
  return memory if quant is None else pack(memory, lengths_B, quant)


@functools.partial(jax.jit, static_argnames=KEPT)
def compact_row(keys_BKSH, values_BKSH, lengths_B, row, **kept) -> Any:
  """Returns what one layer keeps of one row."""
  one = lambda x: jax.lax.dynamic_index_in_dim(x, row, keepdims=True)
  return compact(one(keys_BKSH), one(values_BKSH), one(lengths_B), **kept)


@jax.jit
def take_rows(tree, rows):
  return jax.tree.map(lambda x: x[rows], tree)
