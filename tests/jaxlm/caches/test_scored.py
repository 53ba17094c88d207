"""Lazy ratios against whole attention maps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention import mass
from jaxlm.attention.attend import attention_weights
from jaxlm.attention.rule import layer_rule
from jaxlm.caches import FullCache
from jaxlm.caches import scored as scores
from jaxlm.caches.full import Sequence
from jaxlm.caches.rows import heads_first
from jaxlm.caches.scored import Scored
from jaxlm.caches.voted import Voted
from jaxlm.models.transformer import Transformer
from tests.lazy_models import MODEL, PROMPTS, padded, read
from tests.models import TINY, tiny_model

weights_of = jax.jit(attention_weights)
lazy_ratio = jax.jit(scores.lazy_ratio, static_argnames=('initial', 'recent'))


@functools.partial(jax.jit, static_argnums=0)
def maps_of(config, params, tokens_BT):
  """Returns the attention map and the weights of the extra key of each layer."""
  maps = []

  class Maps(Sequence):
    def attend(self, layer, q, k, v, positions, rule):
      at = jnp.arange(q.shape[1])[None]
      maps.append(attention_weights(q, heads_first(k), at, at, rule))
      return super().attend(layer, q, k, v, positions, rule)

  Transformer(config).apply({'params': params}, tokens_BT, cache=Maps())
  return maps


def brute_force_ratio(lm, tokens, initial, recent, queries, include_self):
  """From the [T, T] maps of one row."""
  ratios = []
  for weights, slot in jax.device_get(maps_of(lm.config, lm.params, np.array([tokens]))):
    T, shares = weights.shape[-1], []
    for i in range(max(0, T - queries), T):
      first = 0 if include_self else 1
      kept = [j for j in range(i + 1) if j < initial or first <= i - j < recent + first]
      extra = 0 if slot is None else slot[0, :, :, i]
      row = weights[0, :, :, i]
      shares.append(np.mean((row[..., kept].sum(-1) + extra) / (row.sum(-1) + extra)))
    ratios.append(np.mean(shares))
  return ratios


@pytest.mark.parametrize(
  'variant, queries, include_self',
  [
    ({}, 1, True),
    ({}, 32, False),
    ({'attention': 'sigmoid'}, 4, False),
    pytest.param({'sink': dataclasses.replace(TINY.sink, kind='kv')}, 4, True, marks=pytest.mark.slow),
  ],
)
def test_prompt_scores_equal_whole_maps(variant, queries, include_self):
  config = MODEL.replace(**variant)
  lm, (tokens_BT, lengths) = tiny_model(config), padded()
  cache = Scored(FullCache.create(config, 3, 64), lengths, jnp.zeros((3, 3)), 2, 6, queries, include_self)
  scored = jax.jit(lambda p, t, c: Transformer(config).apply({'params': p}, t, cache=c)[1])(lm.params, tokens_BT, cache)
  expected = [brute_force_ratio(lm, p, 2, 6, queries, include_self) for p in PROMPTS]
  np.testing.assert_allclose(scored.ratios, expected, atol=1e-6)


def test_scores_of_a_prompt_in_pieces_are_those_of_the_whole():
  lm, (tokens_BT, lengths) = tiny_model(MODEL), padded()

  @functools.partial(jax.jit, static_argnames='size')
  def scored(params, size):
    cache = Scored(Voted.create(FullCache.create(MODEL, 3, 64), lengths), lengths, jnp.zeros((3, 3)), 2, 6, 7, False)
    for start in range(0, 40, size):
      positions = jnp.broadcast_to(start + jnp.arange(size), (3, size))
      cache = Transformer(MODEL).apply({'params': params}, tokens_BT[:, start : start + size], positions, cache)[1]
    return cache.ratios, cache.cache.votes

  whole, pieces = scored(lm.params, 40), scored(lm.params, 8)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces)):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('queries, kernels', [(5, False), (None, False), (None, True)])
def test_votes_are_sums_of_the_maps_columns(queries, kernels, monkeypatch):
  """In pieces, and in the XLA form of the kernels that accelerators have."""
  taken, received = [], mass.received
  monkeypatch.setattr(mass, 'is_default', lambda rule, length: kernels)
  monkeypatch.setattr(mass, 'received', lambda *args: taken.append(1) or received(*args))
  T, rule = 600, layer_rule(MODEL, 0)
  rng = np.random.default_rng(0)
  q, k = (rng.normal(size=(2, T, heads, 8)).astype(np.float32) for heads in (4, 2))
  lengths = np.array([T, 77], np.int32)

  @jax.jit
  def votes_of(q, k):
    cache = Voted.create(FullCache.create(MODEL.replace(num_layers=1, max_length=T), 2, T), lengths, queries)
    return cache.attend(0, q, k, k, jnp.broadcast_to(jnp.arange(T), (2, T)), rule)[1].votes[0]

  votes, at = votes_of(q, k), np.arange(T)[None]
  weights_BKGTS = np.asarray(weights_of(q, k.swapaxes(1, 2), at, at, rule)[0])
  for row, n in enumerate(lengths.tolist()):
    voting = weights_BKGTS[row, :, :, n - (queries or n) : n]
    np.testing.assert_allclose(votes[row], voting.sum(axis=2).mean(axis=1), atol=1e-4)
  assert bool(taken) == kernels


@pytest.mark.slow
def test_a_new_tokens_score_equals_the_longer_prompts():
  lm, (tokens_BT, lengths) = tiny_model(MODEL), padded()
  cache = Scored(read(lm.params, tokens_BT, config=MODEL), lengths + 1, jnp.zeros((3, 3)), 2, 6)
  _, scored = Transformer(MODEL).apply({'params': lm.params}, jnp.asarray([[7], [8], [9]]), lengths[:, None], cache)
  expected = [brute_force_ratio(lm, [*p, t], 2, 6, 1, True) for p, t in zip(PROMPTS, (7, 8, 9))]
  np.testing.assert_allclose(scored.ratios, expected, atol=1e-6)


def test_planted_layers_are_told_apart():
  T, rule = 60, layer_rule(MODEL, 0)
  q = np.zeros((1, 1, 4, 8), np.float32)
  q[..., 0] = 100.0

  def score(*slots):
    keys = np.zeros((1, 2, T, 8), np.float32)
    keys[:, :, slots, 0] = 1.0
    return float(lazy_ratio(q, keys, np.array([[T - 1]]), np.arange(T)[None], rule, initial=2, recent=8)[0])

  assert score(0) > 0.99
  assert score(30) < 0.01
  np.testing.assert_allclose(score(), 10 / T, atol=1e-6)  # Short prompts make uniform layers look lazy.
