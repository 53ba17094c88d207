"""Residual k-means finds clusters, identifiers become unique, and the report counts what brute force counts."""

from collections import Counter

import numpy as np
import pytest

from jaxlm.data import semantic_ids
from jaxlm.errors import DataError


def test_the_first_codes_are_the_clusters_and_later_ones_divide_them():
  rng = np.random.default_rng(0)
  centre = 20 * np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]])[:, None] + rng.normal(0, 3, (4, 2, 3))
  x = (centre[:, :, None] + rng.normal(0, 0.1, (4, 2, 5, 3))).reshape(40, 3)
  codes, centres = semantic_ids.residual_kmeans(x, (4, 8), seed=1)
  assert len(set(codes[:, 0])) == 4 and all(len(set(codes[i : i + 10, 0])) == 1 for i in range(0, 40, 10))
  halves = [{tuple(c) for c in codes[i : i + 5]} for i in range(0, 40, 5)]
  assert all(not a & b for a, b in zip(halves[::2], halves[1::2]))
  near = centres[0][codes[:, 0]] + centres[1][codes[:, 1]]
  assert np.abs(near - x).max() < 1.5 and np.square(near - x).sum() < np.square(centres[0][codes[:, 0]] - x).sum() / 10


def test_more_codes_than_items_leave_some_unused():
  codes, _ = semantic_ids.residual_kmeans(np.array([[0.0], [1.0], [1.0]]), (5,))
  assert codes[1] == codes[2] != codes[0]


def test_one_more_code_makes_identifiers_unique_and_popular_items_come_first():
  codes = np.array([[0, 1], [0, 1], [2, 2], [0, 1]])
  found = semantic_ids.unique(codes, popularity=[1, 9, 0, 5])
  assert found.tolist() == [[0, 1, 2], [0, 1, 0], [2, 2, 0], [0, 1, 1]]
  np.testing.assert_array_equal(semantic_ids.unique(codes[:3:2]), codes[:3:2])


def test_the_report_counts_what_brute_force_counts():
  codes = np.random.default_rng(3).integers(0, [4, 3, 3], (60, 3))
  found = semantic_ids.report(codes)
  rows = [tuple(row) for row in codes.tolist()]
  for l in range(3):
    share = np.array(list(Counter(row[l] for row in rows).values())) / 60
    assert found.used[l] == len(share) and found.entropy[l] == pytest.approx(-(share * np.log2(share)).sum())
    below = Counter(prefix[:l] for prefix in {row[: l + 1] for row in rows})
    assert found.nodes[l] == len({row[: l + 1] for row in rows}) and found.fan_out[l] == max(below.values())
  sizes = Counter(rows).values()
  assert found.sharing == sum(n for n in sizes if n > 1) and found.surplus == 60 - len(sizes) > 0
  assert f'{found.sharing} items share an identifier ({found.surplus} surplus)' in str(found)


def test_titles_give_words_cut_and_filled_to_one_length():
  codes, words = semantic_ids.title_codes(['Star Wars', 'Toy Story 2 Returns', 'Heat'], words=3)
  assert [[words[code] for code in row] for row in codes] == [
    ['Star', 'Wars', '<end>'], ['Toy', 'Story', '2'], ['Heat', '<end>', '<end>']
  ]  # fmt: skip
  with pytest.raises(DataError, match='Item 1 has no title'):
    semantic_ids.title_codes(['Heat', ' '])


def test_features_that_are_no_numbers_are_refused():
  with pytest.raises(DataError, match='feature vector of item 1 has a number that is not finite; 1 items'):
    semantic_ids.residual_kmeans(np.array([[0.0], [np.nan]]), (2,))
  with pytest.raises(DataError, match=r'shape \(0,\); expected \[items, features\]'):
    semantic_ids.residual_kmeans(np.zeros(0), (2,))
