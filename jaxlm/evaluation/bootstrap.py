"""Paired bootstrap: tests whether two models differ, from their results on the same items. Pure NumPy.

  d = sum_i a_i / sum_i u_i - sum_i b_i / sum_i v_i

over documents (a, b: losses; u, v: tokens) or questions (a, b: 1 for a correct answer; u, v: 1). Items are resampled with
replacement, the same ones for both models, so that the difficulty of an item cancels. `paired_statistic` does so for any function of
sums over items, such as BLEU.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Float, Num


@dataclasses.dataclass(frozen=True)
class Difference:
  """The first model minus the second.

  Attributes:
    value: the difference on the given items.
    low, high: ends of the 95 % interval of the resampled differences.
    p: two-sided p-value: twice the share of resampled differences on the other side of zero, at least 2 / (resamples + 1).
    items: number of items.
  """

  value: float
  low: float
  high: float
  p: float
  items: int


def paired_difference(
  ours: Num[np.ndarray, ' n'],
  theirs: Num[np.ndarray, ' n'],
  weights: Num[np.ndarray, ' n'] | None = None,
  their_weights: Num[np.ndarray, ' n'] | None = None,
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> Difference:
  """Returns the difference of two ratios of sums, with its confidence interval and p-value.

  Args:
    ours, theirs: numerator of each item for the first and the second model.
    weights: denominator of each item; None: 1 each.
    their_weights: denominators for the second model; None: the same as for the first.

  Raises:
    ValueError: no items, or arrays of different lengths.
  """
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  weights = np.ones(len(ours)) if weights is None else np.asarray(weights, np.float64)
  their_weights = weights if their_weights is None else np.asarray(their_weights, np.float64)
  ratio = lambda sums: sums[..., 0] / sums[..., 1]
  return paired_statistic(
    np.stack([ours, weights], axis=1), np.stack([theirs, their_weights], axis=1), ratio, resamples=resamples, seed=seed
  )


def paired_statistic(
  ours: Num[np.ndarray, 'n columns'],
  theirs: Num[np.ndarray, 'n columns'],
  statistic: Callable[[Float[np.ndarray, '... columns']], Float[np.ndarray, '...']],
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> Difference:
  """Returns statistic(sums of ours) - statistic(sums of theirs), with its confidence interval and p-value.

  Args:
    ours, theirs: numbers of each item for the first and the second model, of which the statistic needs the sums over items.
    statistic: takes sums, float64 [..., columns], and returns [...].

  Raises:
    ValueError: no items, or arrays of different shapes.
  """
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  n, width = ours.shape
  if ours.shape != theirs.shape:
    raise ValueError(f'Both models need the same items and columns, not {ours.shape} and {theirs.shape}.')
  if n == 0 or resamples < 1:
    raise ValueError(f'A bootstrap needs at least one item and one resample, got {n} and {resamples=}.')
  columns = np.concatenate([ours, theirs], axis=1)
  difference = lambda sums: statistic(sums[..., :width]) - statistic(sums[..., width:])
  random = np.random.default_rng(seed)
  sums = np.array([np.bincount(random.integers(n, size=n), minlength=n) @ columns for _ in range(resamples)])
  drawn = difference(sums)
  beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
  p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
  low, high = np.quantile(drawn, (0.025, 0.975))
  return Difference(float(difference(columns.sum(axis=0))), float(low), float(high), p, n)
