"""Metrics of ranked lists of items, and the lists of two simple recommenders to compare with.

  Recall@k   |first k of the list and truth| / |truth|
  NDCG@k     sum_{i <= k} [item i is true] / log2(i + 1),  divided by the same sum for the best possible list of min(|truth|, k) hits

Both are means over users with at least one true item. Letters: U users, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Float, Int

KS = (1, 3, 5, 10, 20)


def recall_at(ranked: Sequence[int], truth: Sequence[int], k: int) -> float:
  """Returns the share of the true items that are among the first k."""
  return len(set(ranked[:k]) & set(truth)) / len(set(truth))


def ndcg_at(ranked: Sequence[int], truth: Sequence[int], k: int) -> float:
  """Returns the normalised discounted cumulative gain of the first k items. An item that occurs twice counts once."""
  true, gain = set(truth), 0.0
  for i, item in enumerate(ranked[:k]):
    if item in true:
      gain += 1 / np.log2(i + 2)
      true.remove(item)
  return float(gain / sum(1 / np.log2(i + 2) for i in range(min(len(set(truth)), k))))


def ranking_metrics(
  ranked: Sequence[Sequence[int]], truth: Sequence[Sequence[int]], ks: Sequence[int] = KS
) -> dict[str, float]:
  """Returns recall@k and ndcg@k for each k, means over the users who have true items.

  Raises:
    ValueError: the numbers of lists differ, or no user has a true item.
  """
  if len(ranked) != len(truth):
    raise ValueError(f'{len(ranked)} ranked lists do not fit {len(truth)} lists of true items.')
  pairs = [(list(map(int, r)), list(map(int, t))) for r, t in zip(ranked, truth) if len(t)]
  if not pairs:
    raise ValueError('No user has a true item, so there is nothing to measure.')
  found = {}
  for k in ks:
    found[f'recall@{k}'] = float(np.mean([recall_at(r, t, k) for r, t in pairs]))
    found[f'ndcg@{k}'] = float(np.mean([ndcg_at(r, t, k) for r, t in pairs]))
  return found


def popular(popularity: Int[np.ndarray, ' I'], users: int, k: int) -> list[list[int]]:
  """Returns the k items with the most training interactions, the same for all users."""
  return [np.argsort(-np.asarray(popularity), kind='stable')[:k].tolist()] * users


def bigram(
  sequences: Sequence[Int[np.ndarray, ' n']],
  popularity: Int[np.ndarray, ' I'],
  histories: Sequence[Int[np.ndarray, ' n']],
  k: int,
) -> list[list[int]]:
  """Returns for each history the k items that most often followed its last item in `sequences`; popular items come after them.

  An empty history gets the popular items.
  """
  popularity = np.asarray(popularity)
  follow: dict[int, dict[int, int]] = {}
  for sequence in sequences:
    for before, after in zip(sequence[:-1].tolist(), sequence[1:].tolist()):
      counts = follow.setdefault(before, {})
      counts[after] = counts.get(after, 0) + 1
  rest = np.argsort(-popularity, kind='stable').tolist()
  found = []
  for history in histories:
    counts = follow.get(int(history[-1]), {}) if len(history) else {}
    first = sorted(counts, key=lambda item: (-counts[item], -popularity[item], item))[:k]
    there = set(first)
    found.append(first + [item for item in rest[: k + len(first)] if item not in there][: k - len(first)])
  return found


def mean_and_error(values: Float[np.ndarray, ' n']) -> tuple[float, float]:
  """Returns (mean, standard error of the mean)."""
  values = np.asarray(values, np.float64)
  return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
