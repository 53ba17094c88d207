"""CTC against the sum over all paths of a small case."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.losses import ctc

S, T, V = 5, 2, 3


@pytest.mark.parametrize('blank', [0, 2])
def test_sums_over_all_paths(blank):
  logits = jax.random.normal(jax.random.key(0), (3, S, V))
  a, b = [v for v in range(V) if v != blank]
  targets, lengths, predictions = np.array([[a, a], [b, a], [a, b]]), (2, 1, 0), (5, 4, 5)
  ones = lambda ns, size: (np.arange(size) < np.array(ns)[:, None]).astype(np.float32)
  loss, weight = ctc(logits, targets, ones(lengths, T), blank_id=blank, prediction_mask=ones(predictions, S))

  expected, p = 0.0, np.asarray(jax.nn.softmax(logits), np.float64)
  for row, (y, n, m) in enumerate(zip(targets, lengths, predictions)):
    merged = lambda path: [v for v, _ in itertools.groupby(path) if v != blank]
    paths = [path for path in itertools.product(range(V), repeat=m) if merged(path) == list(y[:n])]
    expected -= np.log(sum(np.prod(p[row, np.arange(m), path]) for path in paths)) if n else 0.0
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert weight == 3


def test_nan_shows_and_batches_must_agree():
  assert np.isnan(ctc(jnp.full((1, S, V), jnp.nan), jnp.array([[1, 2]]))[0])
  with pytest.raises(ValueError, match=r'targets \(2, 2\)'):
    ctc(jnp.zeros((1, S, V)), jnp.ones((2, T), jnp.int32))
