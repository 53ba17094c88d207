"""Statistics that several analyses share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Float


def rank_correlation(a: Float[np.ndarray, ' L'], b: Float[np.ndarray, ' L']) -> float:
  """Returns Spearman's correlation. Equal values share their mean rank; NaN if all values of `a` or of `b` are equal."""
  ranks = [_ranks(x) for x in (a, b)]
  if any(np.ptp(r) == 0 for r in ranks):
    return math.nan
  return float(np.corrcoef(*ranks)[0, 1])


def _ranks(x_L):
  _, index_L, counts = np.unique(x_L, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[index_L]
