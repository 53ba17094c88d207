"""Predictions of a decoder of Markov order k from the last k token ids alone, without keys and values.

  state_n = last state of decoder(y_{n-k+1} .. y_n) at positions n-k+1 .. n,   fewer tokens where n + 1 < k

That is the rule of markov_mode='unroll'. The other exact modes give the same states in this way as with their caches, since
nothing older than the k tokens changes a prediction (https://arxiv.org/abs/2402.02084). Letters: k Markov order, R = B T windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxlm import caches
from jaxlm.seq2seq_config import Seq2SeqConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Int


def windows(
  tokens: Int[Array, 'B T'], positions: Int[Array, 'B T'], cache: caches.RecentTokens
) -> tuple[Int[Array, 'R k'], Int[Array, 'R k'], Bool[Array, 'R k'], caches.RecentTokens]:
  """Returns the windows of k tokens that end with each new token, and the extended cache.

  Args:
    tokens: int32 ids that follow those of the cache.
    positions: int32 position of each; they rise by one.

  Returns:
    (ids, positions, whether there is a token, cache). The first windows of a target have fewer than k tokens; the places
    before them have id 0 and position 0.
  """
  ids_BTk, cache = cache.extended(tokens)
  k = ids_BTk.shape[-1]
  ids_Rk = ids_BTk.reshape(-1, k)
  positions_Rk = positions.reshape(-1, 1) + jnp.arange(1 - k, 1)[None]
  return jnp.maximum(ids_Rk, 0), jnp.maximum(positions_Rk, 0), ids_Rk >= 0, cache


def cache_for(config: Seq2SeqConfig, cache: Any, batch: int) -> Any:
  """Returns the cache that the decoder extends by a call with `cache`; None and `caches.Sequence()` mean that there is none.

  Raises:
    ValueError: `caches.RecentTokens` for a model whose predictions depend on more than its ids, or a cache of keys and values
      for a model that keeps ids.
  """
  order = f'markov_order={config.markov_order} and markov_mode={config.markov_mode!r}'
  if isinstance(cache, caches.RecentTokens):
    if not config.is_markov:
      raise ValueError(
        f'Decoding from the last ids alone needs a model of exact Markov order; with {order} a prediction depends on more '
        'tokens. Use the cache that `jaxlm.models.seq2seq.empty_cache` returns.'
      )
    if (k := cache.ids.shape[1]) != config.markov_order:
      raise ValueError(f'The cache holds the last {k} ids; a model with {order} needs {config.markov_order}.')
    return cache
  nothing = cache is None or (isinstance(cache, caches.Sequence) and cache.segments is None)
  if not config.rereads:
    return caches.Sequence() if nothing else cache
  if not nothing:
    raise ValueError(
      f'A model with {order} keeps token ids, and {type(cache).__name__} has no place for them: use the cache that '
      '`jaxlm.models.seq2seq.empty_cache` returns.'
    )
  return caches.RecentTokens.create(batch, config.markov_order)
