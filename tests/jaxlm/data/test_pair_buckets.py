"""The shapes of batches: the best borders, checked against all of them."""

import itertools

import numpy as np
import pytest

from jaxlm import errors
from jaxlm.data.pair_buckets import Shape, _borders, assign, choose_shapes


def test_borders_agree_with_brute_force():
  rng = np.random.default_rng(0)
  for _ in range(30):
    n = int(rng.integers(1, 8))
    counts, widths = rng.integers(1, 50, n), np.cumsum(rng.integers(1, 9, n))
    rows = np.sort(rng.integers(1, 20, n))[::-1]
    for buckets in (1, 2, 3, 9):

      def cost(borders, counts=counts, rows=rows, widths=widths):
        parts = zip([0, *(b + 1 for b in borders)], borders)
        return sum(
          -(-counts[first : last + 1].sum() // rows[last]) * rows[last] * widths[last] for first, last in parts
        )

      inner = [c for k in range(min(buckets, n)) for c in itertools.combinations(range(n - 1), k)]
      found = _borders(counts, rows, widths, buckets)
      assert found[-1] == n - 1 and len(found) <= buckets and found == sorted(set(found))
      assert cost(found) == min(cost([*some, n - 1]) for some in inner)


def test_a_pair_goes_into_the_first_bucket_it_fits_into():
  shapes = (Shape(4, 3, 5), Shape(2, 6, 9))
  lengths = np.array([[3, 5], [4, 1], [1, 6], [6, 9], [7, 1], [1, 10]])
  np.testing.assert_array_equal(assign(lengths, shapes), [0, 1, 1, 1, 2, 2])


def test_rows_are_no_more_than_the_pairs_need():
  lengths = np.full((9, 2), 10)
  assert choose_shapes(lengths, tokens=1000, buckets=3, max_length=10) == (Shape(9, 10, 10),)
  assert choose_shapes(lengths, tokens=1000, buckets=3, max_length=10, devices=4) == (Shape(12, 10, 10),)
  assert choose_shapes(lengths, tokens=80, buckets=3, max_length=10) == (Shape(5, 10, 10),)  # 9 = 5 + 4, not 8 + 1


def test_what_cannot_work_names_both_numbers():
  lengths = np.array([[7, 9], [30, 12]])
  with pytest.raises(ValueError, match='tokens=59 has no room for a pair of 30 tokens on each of 2.*60 or more'):
    choose_shapes(lengths, tokens=59, buckets=2, max_length=30, devices=2)
  with pytest.raises(errors.DataError, match='All 2 pairs are longer than max_length=8 tokens; the shortest has 9'):
    choose_shapes(lengths, tokens=100, buckets=2, max_length=8)
  with pytest.raises(ValueError, match='buckets=0'):
    choose_shapes(lengths, tokens=100, buckets=0, max_length=8)
