"""A Gaussian process with the Matern kernel nu = 5/2, and the upper confidence bound of its predictions.

  m(x, x') = (1 + a + a^2 / 3) exp(-a),   a = sqrt(5) |x - x'| / l
  k(x, x') = (1 - w) m(x, x') + w (x - c) (x' - c) / v,   c and v the mean and the variance of X
  mean(x) = k_xX (K + N)^-1 y,   var(x) = k_xx - k_xX (K + N)^-1 k_Xx,   N = diag(noise / repeats)

y is scaled to mean 0 and standard deviation 1. With w = 0 this is the surrogate of SWIFT's search
(https://arxiv.org/abs/2410.06916): its code uses the one of `bayesian-optimization` with noise 1e-2. The linear part of k models
effects of single coordinates that add up; the Matern part models all others.
"""

from collections.abc import Sequence
import itertools

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular


def matern(x, z, length_scale: float) -> np.ndarray:
  """Returns [n, m], the Matern 5/2 kernel between rows of x [n, d] and z [m, d]."""
  return _matern(_distances(np.asarray(x, float), np.asarray(z, float)), length_scale)


def ucb(mean, std, kappa: float = 2.5) -> np.ndarray:
  """Returns mean + kappa std: the larger kappa, the more a search explores."""
  return np.asarray(mean) + kappa * np.asarray(std)


class GaussianProcess:
  """Gaussian process regression. `fit` chooses noise, l and w from the values given, by the largest marginal likelihood.

  Args:
    noise: candidate variances of one observation, in units of the variance of y.
    length_scales: candidates for l, in units of sqrt(d), the diagonal of the unit cube.
    linear: candidates for w.
    tune_on: number of latest observations that choose l, noise and w. All observations are used to predict.
  """

  def __init__(
    self,
    noise: Sequence[float] = (1e-2,),
    length_scales: Sequence[float] = tuple(np.geomspace(0.1, 10, 10)),
    linear: Sequence[float] = (0.0,),
    tune_on: int = 256,
  ):
    self.noises, self.length_scales = tuple(noise), tuple(length_scales)
    self.shares, self.tune_on = tuple(linear), tune_on

  def fit(self, X, y, repeats=None) -> 'GaussianProcess':
    """Conditions on y [n] at X [n, d]; sets `length_scale`, `noise`, `linear` and `log_likelihood`, and returns itself.

    Args:
      repeats: [n] number of observations whose mean each y is (None: 1).

    Raises:
      ValueError: no observations, shapes that do not fit, or values that are not finite.
    """
    X, y = np.asarray(X, float), np.asarray(y, float)
    repeats = np.ones(len(y)) if repeats is None else np.asarray(repeats, float)
    if X.ndim != 2 or not len(X) or y.shape != X.shape[:1] or repeats.shape != y.shape:
      raise ValueError(
        f'Expected X [n, d], y [n] and repeats [n] with n >= 1, not {X.shape}, {y.shape} and {repeats.shape}.'
      )
    if not (np.isfinite(X).all() and np.isfinite(y).all() and (repeats > 0).all()):
      raise ValueError('X and y must be finite, and repeats positive.')
    self.X, self.center, self.scale = X, y.mean(), y.std() or 1.0
    self.middle = X.mean(axis=0)
    self.spread = ((X - self.middle) ** 2).sum(axis=1).mean() or 1.0
    targets, last, best = (y - self.center) / self.scale, slice(-self.tune_on, None), None
    for length_scale, linear in itertools.product(self.length_scales, self.shares):
      self.length_scale, self.linear = length_scale * np.sqrt(X.shape[1]), linear
      K = self._kernel(X[last], X[last])
      for noise in self.noises:
        fit = _condition(K.copy(), targets[last], noise / repeats[last])
        if best is None or fit[0] > best[0][0]:
          best = fit, (self.length_scale, linear, noise)
    fitted, (self.length_scale, self.linear, self.noise) = best
    self.log_likelihood, self.factor, self.weights = (
      fitted if len(y) <= self.tune_on else _condition(self._kernel(X, X), targets, self.noise / repeats)
    )
    return self

  def mean(self, X) -> np.ndarray:
    """Returns only the mean of `predict`, in a fraction of its time."""
    return self._kernel(X, self.X) @ self.weights * self.scale + self.center

  def predict(self, X) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation [m] of the noiseless function at X [m, d], in units of y."""
    K = self._kernel(X, self.X)
    solved = solve_triangular(self.factor, K.T, lower=True, check_finite=False)
    own = 1 - self.linear + self.linear * ((np.asarray(X, float) - self.middle) ** 2).sum(axis=1) / self.spread
    var = np.maximum(own - np.einsum('nm,nm->m', solved, solved), 0)  # rounding may leave -1e-16
    return K @ self.weights * self.scale + self.center, np.sqrt(var) * self.scale

  def _kernel(self, x, z) -> np.ndarray:
    K = matern(x, z, self.length_scale)
    if not self.linear:
      return K
    x, z = (np.asarray(v, float) - self.middle for v in (x, z))
    return (1 - self.linear) * K + self.linear * (x @ z.T) / self.spread


def _distances(x: np.ndarray, z: np.ndarray) -> np.ndarray:
  squares = (x**2).sum(1)[:, None] + (z**2).sum(1)[None] - 2 * x @ z.T
  return np.sqrt(np.maximum(squares, 0))


def _matern(distances: np.ndarray, length_scale: float) -> np.ndarray:
  a = distances * (np.sqrt(5) / length_scale)
  return (1 + a + a**2 / 3) * np.exp(-a)


def _condition(K, targets, noise):
  """Returns the log marginal likelihood, the lower Cholesky factor of K + N, and (K + N)^-1 targets. K is overwritten."""
  K[np.diag_indices_from(K)] += noise
  factor = cho_factor(K, lower=True, overwrite_a=True, check_finite=False)
  weights = cho_solve(factor, targets, check_finite=False)
  log_det = 2 * np.log(np.diag(factor[0])).sum()
  return -0.5 * (targets @ weights + log_det + len(targets) * np.log(2 * np.pi)), factor[0], weights
