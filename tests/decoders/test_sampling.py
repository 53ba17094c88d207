import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.sampling import choose, keep


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
  ],
)
def test_bad_settings_name_the_value(bad):
  with pytest.raises(ValueError, match=f'{next(iter(bad))}={next(iter(bad.values()))}'):
    decoders.Sampling(**bad)
