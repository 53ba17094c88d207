"""Recall and NDCG by hand, and the lists of simple recommenders."""

import numpy as np
import pytest

from jaxlm.evaluation import ranking


def test_recall_counts_hits_and_ndcg_their_places():
  assert ranking.recall_at([5, 1, 7], [1, 9], 3) == 0.5 and ranking.recall_at([5, 1, 7], [1, 9], 1) == 0
  gain = 1 / np.log2(3)
  assert ranking.ndcg_at([5, 1, 7], [1, 9], 3) == pytest.approx(gain / (1 + gain))
  assert ranking.ndcg_at([1, 9], [9, 1], 5) == pytest.approx(1)  # The best possible list has two hits.
  assert ranking.ndcg_at([1, 1], [1, 9], 2) == pytest.approx(1 / (1 + gain))  # The second 1 is no hit.


def test_metrics_are_means_over_users_with_true_items():
  found = ranking.ranking_metrics([[1, 2], [3, 4], [5, 6]], [[2], [9], []], ks=(1, 2))
  assert found['recall@1'] == 0 and found['recall@2'] == 0.5
  assert found['ndcg@2'] == pytest.approx(1 / np.log2(3) / 2)
  with pytest.raises(ValueError, match='No user has a true item'):
    ranking.ranking_metrics([[1]], [[]])
  with pytest.raises(ValueError, match='2 ranked lists do not fit 1'):
    ranking.ranking_metrics([[1], [2]], [[1]])


def test_simple_recommenders():
  popularity = np.array([3, 1, 5, 0])
  assert ranking.popular(popularity, 2, 3) == [[2, 0, 1], [2, 0, 1]]
  sequences = [np.array([0, 1, 0, 1]), np.array([0, 3]), np.array([1, 2])]
  histories = [np.array([2, 0]), np.array([3]), np.array([], int)]
  # After 0 came 1 twice and 3 once; nothing came after 3; an empty history has no last item.
  assert ranking.bigram(sequences, popularity, histories, 3) == [[1, 3, 2], [2, 0, 1], [2, 0, 1]]
  assert ranking.mean_and_error([1.0, 3.0]) == (2.0, 1.0)
