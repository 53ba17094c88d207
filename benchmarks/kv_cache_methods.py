"""Methods that cut a prompt's whole cache to equal bytes. All methods share one prefill."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders import programs, strategies
from decoders.fingerprint import fingerprint
from decoders.prompts import PaddedPrompts
from decoders.simlayerkv import KiviConfig
from decoders.simlayerkv.config import LazyConfig, cache_bytes, select_lazy
from decoders.simlayerkv.context import Context
from decoders.simlayerkv.memory import Keep, Score, compact_row
from jaxlm.caches.full import FullCache
from jaxlm.caches.layered import LayeredCache, pooled
from jaxlm.caches.scored import Scored
from jaxlm.caches.voted import Voted
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket


@dataclasses.dataclass(frozen=True)
class Read:
  """A prompt's whole cache, with the lazy ratios and votes by which methods cut it."""

  ids: list[int]
  cache: FullCache
  ratios: np.ndarray  # [L]
  votes: dict[str, tuple[jax.Array, ...]]  # by method, of each layer [1, K, S]
  room: int
  logits: jax.Array  # [1, V]


@dataclasses.dataclass(frozen=True)
class _Notes:
  """Wraps a cache so that it records lazy ratios and the votes of all methods."""

  score: Score

  def __call__(self, cache: FullCache, lengths_B) -> Scored:
    few = Voted.create(cache, lengths_B, 32)
    return dataclasses.replace(self.score(cache, lengths_B), cache=Voted.create(few, lengths_B))


def read(
  lm: LanguageModel, ids: list[int], lazy: LazyConfig, room: int, chunk: int = 1024, question: Sequence[int] = ()
) -> Read:
  """Reads a prompt and then a question that is not kept in the cache. Lazy ratios and votes come from both."""
  memory = strategies.WholeMemory()
  memory.wrap = _Notes(Score.of(lazy, lm.config))
  both = [*ids, *question]
  tokens = np.zeros((1, bucket(len(both))), np.int32)
  tokens[0, : len(both)] = both
  padded, total = PaddedPrompts(tokens, np.array([len(both)], np.int32)), jnp.asarray([len(ids) + room])
  logits, noted = memory.read(
    programs.Clock(), lm, padded, total, strategies.Plan(chunk, slots=bucket(len(ids) + room))
  )
  votes = {'h2o': noted.cache.votes, 'snapkv': noted.cache.cache.votes}
  return Read(ids, noted.whole, np.asarray(noted.ratios[0]), votes, room, logits)


@dataclasses.dataclass(frozen=True)
class Method:
  """A method that cuts a cache: a rule, and the number of layers that it must not cut."""

  name: str
  lazy: LazyConfig
  layers: str = 'ratio'
  """Which layers are cut: those with the highest ratios, random ones, or the first or last ones."""


def methods(
  lm: LanguageModel, length: int, lazy: LazyConfig, n_lazy: int, bits: tuple[int, ...] = (4,)
) -> list[Method]:
  """Returns the methods: full, lazy and its controls, and methods that cut all layers to the same bytes; each also quantised."""
  L = lm.config.num_layers
  lazy = lazy.replace(n_full=L - n_lazy, stage='prefill')
  # Every layer keeps as many tokens as the lazy cache has on average.
  each = ((L - n_lazy) * length + n_lazy * min(length, lazy.kept)) // L
  every = lazy.replace(n_full=0, n_recent=each - lazy.n_initial)
  full = lazy.replace(n_full=L)
  exact = [
    Method('full', full),
    Method('lazy', lazy),
    Method('random lazy', lazy, 'random'),
    Method('first lazy', lazy, 'first'),
    Method('last lazy', lazy, 'last'),
    Method('streaming', every),
    Method('snapkv', every.replace(n_initial=0, n_recent=each, keep='snapkv', n_observed=min(32, each // 2))),
    Method('h2o', every.replace(n_initial=0, n_recent=each, keep='h2o')),
    Method('all lazy', lazy.replace(n_full=0)),
  ]
  packed = [
    Method(f'{m.name}, {b} bits', m.lazy.replace(quant=KiviConfig(b, min(32, lm.config.head_dim), 32)), m.layers)
    for b in bits
    for m in exact[:2]
  ]
  return exact + packed


def cut_layers(method: Method, lm: LanguageModel, prompt: Read, rng) -> np.ndarray:
  """Returns [L] bool."""
  L = lm.config.num_layers
  lazy_L = select_lazy(prompt.ratios[None], [len(prompt.ids)], method.lazy, lm.config)[0]
  n = int(lazy_L.sum())
  if method.layers == 'random':
    lazy_L = np.isin(np.arange(L), rng.permutation(L)[:n])
  elif method.layers != 'ratio':
    lazy_L = np.arange(L) < n if method.layers == 'first' else np.arange(L) >= L - n
  return lazy_L


def cut(method: Method, lm: LanguageModel, prompt: Read, lazy_L: np.ndarray) -> Context:
  """Returns the prompt with the method's cut cache; the whole cache does not change."""
  keep, lengths = Keep(method.lazy, prompt.room), jnp.asarray([len(prompt.ids)], jnp.int32)
  votes = prompt.votes.get(method.lazy.keep, [None] * len(lazy_L))

  def row(layer: int, b: int) -> Any:
    arrays = prompt.cache.keys[layer], prompt.cache.values[layer], lengths, votes[layer]
    return compact_row(*arrays, jnp.int32(b), keep=keep, cut=bool(lazy_L[layer]))

  cache = prompt.cache
  if method.lazy.layout == 'static':
    cache = LayeredCache(tuple(row(layer, 0) for layer in range(len(lazy_L))))
  elif lazy_L.any() or method.lazy.quant is not None:
    cache = pooled(lazy_L[:, None].astype(int), 2, row, lambda layer: None)
  return Context(cache, [prompt.ids], 0, prompt.room, fingerprint(lm), {'lazy_layers': [], 'compression': 1.0})


def formula_bytes(method: Method, lm: LanguageModel, length: int, lazy_L: np.ndarray) -> int:
  """Returns the bytes of a cache after the prompt if its exact numbers take 16 bits."""
  half = lm.config.replace(dtype='bfloat16')
  return cache_bytes(half, length, int(lazy_L.sum()), method.lazy.kept, method.lazy.quant)
