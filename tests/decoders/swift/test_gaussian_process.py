"""The Gaussian process of the search is its formula, and its linear kernel learns what adds up."""

import numpy as np
import pytest

from decoders.swift.gaussian_process import GaussianProcess, matern, ucb
from decoders.swift.search import NOISE
from decoders.swift.sets import draw


@pytest.mark.parametrize('tune_on', [256, 7])
def test_process_is_the_direct_formula(tune_on):
  rng = np.random.default_rng(0)
  X, Z, y, repeats = rng.random((12, 3)), rng.random((5, 3)), rng.random(12), rng.integers(1, 4, 12)
  process = GaussianProcess(noise=(0.01, 0.3), tune_on=tune_on).fit(X, y, repeats)

  def kernel(a, b, l):
    r = np.sqrt(5) * np.linalg.norm(a[:, None] - b[None], axis=-1) / l
    return (1 + r + r**2 / 3) * np.exp(-r)

  def likelihood(l, noise, part):
    t = ((y - y.mean()) / y.std())[part]
    K = kernel(X[part], X[part], l) + noise * np.diag(1 / repeats[part])
    return -0.5 * (t @ np.linalg.inv(K) @ t + np.log(np.linalg.det(K)) + len(t) * np.log(2 * np.pi))

  grid = [(l * np.sqrt(3), noise) for l in process.length_scales for noise in process.noises]
  best = max(grid, key=lambda option: likelihood(*option, slice(-tune_on, None)))
  assert (process.length_scale, process.noise) == best
  assert process.log_likelihood == pytest.approx(likelihood(*best, slice(None)))
  inverse = np.linalg.inv(kernel(X, X, best[0]) + best[1] * np.diag(1 / repeats))
  k = kernel(Z, X, best[0])
  np.testing.assert_allclose(matern(Z, X, best[0]), k, atol=1e-12)
  mean, std = process.predict(Z)
  np.testing.assert_allclose(mean, k @ inverse @ (y - y.mean()) + y.mean(), atol=1e-9)
  np.testing.assert_allclose(std, np.sqrt(1 - np.diag(k @ inverse @ k.T)) * y.std(), atol=1e-9)
  np.testing.assert_allclose(process.mean(Z), mean)
  np.testing.assert_allclose(ucb(mean, std), mean + 2.5 * std)


def test_process_takes_equal_scores_and_refuses_broken_ones():
  mean, std = GaussianProcess().fit(np.eye(3), np.full(3, 0.5)).predict(np.eye(3))
  assert np.allclose(mean, 0.5) and np.isfinite(std).all()
  with pytest.raises(ValueError, match='must be finite'):
    GaussianProcess().fit(np.eye(2), [np.nan, 1])
  with pytest.raises(ValueError, match='n >= 1'):
    GaussianProcess().fit(np.eye(2), [1.0])


def test_a_linear_kernel_learns_from_few_scores_what_adds_up():
  rng = np.random.default_rng(0)
  effects, draws = rng.normal(size=56), lambda n: draw(rng, n, np.ones(56), 4).astype(float)
  X, new = draws(150), draws(200)
  y = X @ effects + rng.normal(scale=1.5, size=len(X))
  told = {share: np.corrcoef(GaussianProcess(NOISE, (0.3, 1.0), (share,)).fit(X, y).mean(new), new @ effects)[0, 1] for share in (0.0, 0.95)}  # fmt: skip
  assert told[0.95] > 0.75 and told[0.95] > told[0.0], told
