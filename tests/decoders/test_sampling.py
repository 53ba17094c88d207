import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.sampling import choose, first_largest, keep, warped


def brute_force(logits, top_k=0, top_p=1.0, min_p=0.0):
  """The filters by sorting, in float64, one row."""
  kept = np.ones(logits.shape, bool)
  if top_k:
    kept &= logits >= np.sort(logits)[-top_k]
  if top_p < 1:
    p = np.where(kept, np.exp(logits.astype(np.float64) - logits.max()), 0)
    order = np.argsort(-p, kind='stable')
    p = p / p.sum()
    needed = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    kept &= p >= p[order[needed - 1]]
  if min_p:
    kept &= logits >= logits[kept].max() + np.log(min_p)
  return kept


@pytest.mark.parametrize(
  'filters',
  [
    {'top_k': 1},
    {'top_k': 7},
    {'top_p': 0.6},
    {'top_p': 0.95},
    {'min_p': 0.1},
    {'top_k': 20, 'top_p': 0.8, 'min_p': 0.02},
  ],
)
def test_filters_keep_what_sorting_keeps(filters):
  logits = np.random.default_rng(0).normal(size=(5, 101)).astype(np.float32) * 3
  kept = keep(jnp.asarray(logits), {n: jnp.asarray(v) for n, v in filters.items()}) > -jnp.inf
  np.testing.assert_array_equal(kept, np.stack([brute_force(row, **filters) for row in logits]))


def test_filters_keep_ties_and_survive_flat_and_infinite_logits():
  flat = jnp.zeros((1, 6))
  assert (keep(flat, {'top_k': jnp.asarray(2)}) == 0).all()  # all tie
  assert (keep(flat, {'top_p': jnp.asarray(1.0)}) == 0).all()
  masked = jnp.asarray([[0.0, -jnp.inf, 1.0, -1.0]])
  assert (keep(masked, {'top_k': jnp.asarray(10)}) == masked).all()  # more than there are


def test_samples_follow_the_distribution():
  logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(20000))
  for temperature in (1.0, 0.5):
    values = {'temperature': jnp.asarray(temperature)}
    drawn = np.asarray(choose(jnp.tile(logits, (20000, 1)), keys, None, values))
    expected = jax.nn.softmax(logits[0] / temperature)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20000, expected, atol=0.012)


def test_penalty_lowers_seen_tokens_only():
  logits = jnp.asarray([[2.0, -1.0, 1.5]])
  seen = jnp.asarray([[True, True, False]])
  assert choose(logits, None, seen, {'repetition_penalty': jnp.asarray(2.0)})[0] == 2
  assert choose(logits, None, seen, {'repetition_penalty': jnp.asarray(1.1)})[0] == 0


def test_the_smallest_temperature_is_the_limit_of_greedy():
  logits = np.random.default_rng(0).normal(size=(64, 50)).astype(np.float32) * 1000
  logits[:2] *= [[1e-3], [1e30]]
  logits[2] -= 5000
  keys = jax.random.split(jax.random.key(1), 64)
  for temperature in (1e-300, 1e-45, 1e-38, 2e-38, 1e-20, 1e-9):
    for more in ({}, {'top_k': 2**40}, {'top_p': 1e-300}, {'top_p': 0.999999999}, {'min_p': 1e-300}, {'min_p': 1.0}):
      values = jax.tree.map(jnp.asarray, decoders.Sampling(temperature, **more).active)
      np.testing.assert_array_equal(choose(jnp.asarray(logits), keys, None, values), logits.argmax(axis=1))
  tied = jnp.zeros((64, 50)).at[:, 20:22].set(3.0)
  drawn = choose(tied, keys, None, jax.tree.map(jnp.asarray, decoders.Sampling(1e-45).active))
  assert set(drawn.tolist()) <= {20, 21}


def test_the_least_top_p_keeps_the_likeliest_tokens_alone():
  logits = jnp.asarray([[1.0, 3.0, 3.0, -2.0], [0.0, 1.0, 2.0, 3.0]])
  for top_p in (5e-324, 1e-45, 1e-38, 1e-7):
    values = jax.tree.map(jnp.asarray, decoders.Sampling(1.0, top_p=top_p).active)
    np.testing.assert_array_equal(jnp.isfinite(keep(logits, values)), logits == logits.max(axis=1, keepdims=True))
  hot = jax.tree.map(jnp.asarray, decoders.Sampling(float('inf')).active)
  padded = logits.at[:, 0].set(-jnp.inf)
  assert np.isneginf(warped(padded, None, hot)).sum() == 2 and not np.isnan(warped(padded, None, hot)).any()


@pytest.mark.parametrize(
  'bad',
  [
    {'temperature': -1.0},
    {'temperature': float('nan')},
    {'top_k': -1},
    {'top_p': 0.0},
    {'top_p': 1.5},
    {'min_p': -0.1},
    {'repetition_penalty': 0.0},
    {'repetition_penalty': float('inf')},
    {'repetition_penalty': 1e31},
  ],
)
def test_bad_settings_name_the_value(bad):
  with pytest.raises(ValueError, match=re.escape(f'{next(iter(bad))}={next(iter(bad.values()))}')):
    decoders.Sampling(**bad)


def test_the_first_of_equal_largest_entries_is_chosen():
  x = np.random.default_rng(0).integers(0, 4, (3, 7, 101)).astype(np.float32)  # many ties
  x[0, 0], x[0, 1], x[0, 2, :-1], x[0, 3, 1:] = -np.inf, np.inf, -np.inf, -np.inf
  found = first_largest(jnp.asarray(x))
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, x.argmax(axis=-1))


def test_the_largest_entry_beside_nan_is_a_token():
  assert first_largest(jnp.asarray([1.0, jnp.nan, 2.0])) == 2
