"""An RQ-VAE learns to reconstruct, uses its codes, and Sinkhorn's algorithm spreads items over the last level."""

import functools

import jax
import numpy as np
import pytest

from jaxlm.data import rqvae, semantic_ids
from jaxlm.data.semantic_ids import RqVaeConfig
from jaxlm.errors import DataError

CONFIG = RqVaeConfig(hidden=(12,), width=6, steps=150, learning_rate=0.01, reset_every=20, sinkhorn_iterations=8)
SIZES = (4, 4)


@pytest.fixture(scope='module')
def vectors():
  rng = np.random.default_rng(0)
  return (3 * rng.normal(0, 1, (4, 1, 5)) + rng.normal(0, 1, (4, 6, 5))).reshape(24, 5).astype(np.float32)


@pytest.fixture(scope='module')
def trained(vectors):
  said = []
  codes = rqvae.fit(vectors, SIZES, CONFIG, seed=1, say=said.append)
  return codes, said


def test_training_lowers_the_loss_and_the_codes_follow_the_features(trained, vectors):
  codes, (said,) = trained
  first, last = (float(said.split(' at the ')[i].split()[-1]) for i in (0, 1))
  assert last < first / 2
  of = np.arange(24) // 6
  same = np.mean([codes[i, 0] == codes[j, 0] for i in range(24) for j in range(i) if of[i] == of[j]])
  other = np.mean([codes[i, 0] == codes[j, 0] for i in range(24) for j in range(i) if of[i] != of[j]])
  assert same > 0.5 > 0.3 > other
  np.testing.assert_array_equal(rqvae.fit(vectors, SIZES, CONFIG, seed=1), codes)


def test_items_with_the_same_prefix_get_different_last_codes_as_far_as_there_are_some(trained):
  codes, _ = trained
  for prefix in np.unique(codes[:, 0]):
    sizes = np.bincount(codes[codes[:, 0] == prefix, 1], minlength=4)
    if (codes[:, 0] == prefix).sum() <= 4:
      assert sizes.max() == 1
    else:
      assert sizes.max() <= -(-sizes.sum() // 4) + 1
  # A level of one code leaves no other way than to share it.
  clash = rqvae._spread(np.array([[0, 1], [0, 1], [0, 1], [1, 1]], np.int32), np.zeros((4, 2)), np.eye(3, 2))
  assert sorted(clash[:3, 1]) == [0, 1, 2] and clash[3].tolist() == [1, 1]


def test_sinkhorn_balances_the_codes_and_prefers_near_ones():
  d = np.array([[0.0, 1.0], [0.1, 1.0], [0.0, 0.2], [0.0, 0.9]], np.float32)
  weights = jax.jit(functools.partial(rqvae.sinkhorn, temperature=0.05, iterations=100))(d)
  np.testing.assert_allclose(np.sum(weights, axis=1), 0.25, rtol=1e-5)
  np.testing.assert_allclose(np.sum(weights, axis=0), 0.5, rtol=1e-2)
  assert np.argmax(weights, axis=1)[2] == 1 and np.argmin(d, axis=1).sum() == 0  # Nearest codes alone would all be 0.


def test_the_decoder_sees_the_codes_and_the_encoder_gets_its_gradient(vectors):
  @jax.jit
  def run(x):
    params = rqvae.init_params(CONFIG, 5, SIZES, jax.random.key(0))
    params['codes'] = [jax.random.normal(jax.random.key(l), c.shape) for l, c in enumerate(params['codes'])]
    (value, (index, residuals)), grads = jax.value_and_grad(lambda p: rqvae.loss(CONFIG, p, x), has_aux=True)(params)
    q = sum(code[index[:, l]] for l, code in enumerate(params['codes']))
    z = rqvae.mlp(params['encoder'], x)
    square = lambda a, b: jax.numpy.mean(jax.numpy.sum((a - b) ** 2, axis=1))
    vectors = [code[index[:, l]] for l, code in enumerate(params['codes'])]
    expected = square(rqvae.mlp(params['decoder'], q), x)
    expected += 1.25 * sum(square(r, v) for r, v in zip((z, z - vectors[0]), vectors))
    return value, expected, grads, index, params['codes'], z

  value, expected, grads, index, codes, z = run(vectors)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert all(np.abs(layer['w']).max() > 0 for layer in (*grads['encoder'], *grads['decoder']))
  # A code moves towards the mean of its residuals, and only if an item has it.
  rest = np.asarray(z)
  for l in range(2):
    used = np.unique(index[:, l])
    for c in range(4):
      mean = (2 / 24) * sum(codes[l][c] - rest[i] for i in np.flatnonzero(index[:, l] == c))
      np.testing.assert_allclose(grads['codes'][l][c], mean if c in used else 0 * codes[l][c], atol=1e-4)
    rest = rest - codes[l][index[:, l]]


def test_bad_settings_and_features_are_refused():
  with pytest.raises(ValueError, match='rqvae.steps=0 must be at least 1'):
    RqVaeConfig(steps=0)
  with pytest.raises(ValueError, match='rqvae.commitment=-1 must not be negative'):
    RqVaeConfig(commitment=-1)
  with pytest.raises(DataError, match='not finite'):
    rqvae.fit(np.full((3, 2), np.inf), SIZES, CONFIG)
  assert semantic_ids.RqVaeConfig is RqVaeConfig
