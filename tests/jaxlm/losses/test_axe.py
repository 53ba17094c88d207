"""AXE against all monotonic alignments of small cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.losses import axe, cross_entropy

B, S, T, V, EPSILON = 4, 5, 3, 7, 6
MASK = (np.arange(T) < np.array([3, 2, 1, 0])[:, None]).astype(np.float32)
PREDICTIONS = (np.arange(S) < np.array([5, 4, 1, 5])[:, None]).astype(np.float32)


def inputs():
  keys = jax.random.split(jax.random.key(0), 2)
  return 2 * jax.random.normal(keys[0], (B, S, V)), jax.random.randint(keys[1], (B, T), 0, V - 1)


def brute_force(nll, y, delta):
  """Returns the least cost of aligning targets y with all predictions; nll [predictions, V]."""

  @functools.cache
  def best(i, j):
    if i == 0 and j == 0:
      return 0.0
    options = []
    if i and j:
      options.append(best(i - 1, j - 1) + nll[j - 1, y[i - 1]])
    if j:
      options.append(best(i, j - 1) + nll[j - 1, EPSILON])
    if i:
      options.append(best(i - 1, j) + delta * nll[max(j - 1, 0), y[i - 1]])
    return min(options)

  return best(len(y), len(nll))


@pytest.mark.parametrize('delta', [0.5, 1.0, 3.0])
def test_is_the_best_alignment(delta):
  logits, targets = inputs()
  loss, weight = axe(logits, targets, MASK, epsilon_id=EPSILON, delta=delta, prediction_mask=PREDICTIONS)
  nll = -np.asarray(jax.nn.log_softmax(logits), np.float64)
  lengths = zip(nll, np.asarray(targets), PREDICTIONS.sum(1).astype(int), MASK.sum(1).astype(int))
  np.testing.assert_allclose(loss, sum(brute_force(x[:m], y[:n], delta) for x, y, m, n in lengths if n), rtol=1e-5)
  assert weight == MASK.sum()


def test_a_shifted_target_costs_one_skip_each():
  targets = jnp.array([[0, 1, 2]])
  logits = 20.0 * jax.nn.one_hot(jnp.array([[EPSILON, 0, 1, 2]]), V)
  assert axe(logits, targets, epsilon_id=EPSILON)[0] < 1e-5
  assert cross_entropy(logits[:, :3], targets)[0] > 50


def test_gradient_is_that_of_finite_differences():
  logits, targets = inputs()
  loss = lambda z: axe(z, targets, MASK, epsilon_id=EPSILON, delta=2.0, prediction_mask=PREDICTIONS)[0]
  direction = jax.random.normal(jax.random.key(3), logits.shape)
  slope = (loss(logits + 1e-2 * direction) - loss(logits - 1e-2 * direction)) / 2e-2
  gradient = jax.jit(jax.grad(loss))(logits)
  np.testing.assert_allclose(slope, jnp.sum(gradient * direction), rtol=1e-2)
  assert not gradient[3].any() and not gradient[1, 4].any()


def test_nan_shows_and_wrong_arguments_are_named():
  logits, targets = inputs()
  assert np.isnan(axe(logits.at[0, 0, 0].set(jnp.nan), targets, epsilon_id=EPSILON)[0])
  with pytest.raises(ValueError, match='delta=-1'):
    axe(logits, targets, epsilon_id=EPSILON, delta=-1)
  with pytest.raises(ValueError, match=r'targets \(3, 3\)'):
    axe(logits, targets[:3], epsilon_id=EPSILON)
