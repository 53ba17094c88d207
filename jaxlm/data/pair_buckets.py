"""The few shapes that batches of sentence pairs have, chosen so that little of them is padding.

S source tokens, T target tokens. A pair has the length max(S, T), and bucket i takes the pairs of the lengths (l_{i-1}, l_i]. Its shape
has the most source and the most target tokens of any pair up to l_i. The borders l are the best ones, by dynamic programming:

  minimise  sum_i  ceil(pairs in bucket i / rows_i) x rows_i x (S_i + T_i)      rows_i = budget / max(S_i, T_i)

Then a pair moves to the first bucket that it fits into, and the rows of a bucket are lowered to what its batches hold when its pairs
are spread evenly over them.
"""

from typing import NamedTuple

import numpy as np

from jaxlm import errors


class Shape(NamedTuple):
  """What all batches of a bucket have in common."""

  rows: int
  S: int
  T: int


def _borders(counts_L: np.ndarray, rows_L: np.ndarray, widths_L: np.ndarray, buckets: int) -> list[int]:
  """Returns the last length of each bucket, as indices into the lengths that occur; at most `buckets` of them.

  Args:
    counts_L: number of pairs of each length.
    rows_L, widths_L: rows of a batch whose bucket ends at this length, and the places of each row.
  """
  n = len(counts_L)
  before = np.concatenate([[0], np.cumsum(counts_L)])
  pairs = before[1:] - before[:, None]  # Of the lengths from i up to and with j; not positive where that is none.
  added = np.where(pairs > 0, -(-pairs // rows_L) * rows_L * widths_L, np.inf)
  # costs[b][j] is the least for the first j lengths in b buckets.
  costs, starts = [np.concatenate([[0], np.full(n, np.inf)])], []
  for _ in range(min(buckets, n)):
    totals = costs[-1][:, None] + added
    starts.append(totals.argmin(axis=0))
    costs.append(np.concatenate([[np.inf], totals.min(axis=0)]))
  used = int(np.argmin([cost[n] for cost in costs]))
  borders, end = [], n
  for start in reversed(starts[:used]):
    borders.append(end - 1)
    end = int(start[end - 1])
  return borders[::-1]


def choose_shapes(
  lengths: np.ndarray, *, tokens: int, buckets: int, max_length: int, devices: int = 1
) -> tuple[Shape, ...]:
  """Returns at most `buckets` shapes for pairs of some lengths, the smallest first.

  Args:
    lengths: source and target tokens of each pair, int [pairs, 2].
    tokens, buckets, max_length, devices: as for `jaxlm.data.pair_batches.make_pair_batches`.

  Raises:
    DataError: no pair is within max_length.
    ValueError: an argument is less than 1, or the budget has no room for a row of the longest pair on each device.
  """
  if min(tokens, buckets, max_length, devices) < 1:
    raise ValueError(f'{tokens=}, {buckets=}, {max_length=} and {devices=} must be at least 1.')
  longest = lengths.max(axis=1)
  fits = longest <= max_length
  if not fits.any():
    raise errors.DataError(
      f'All {len(lengths)} pairs are longer than {max_length=} tokens; the shortest has {longest.min()}. Raise max_length.'
    )
  lengths, longest = lengths[fits], longest[fits]
  occurring, counts_L = np.unique(longest, return_counts=True)
  most = np.zeros((len(occurring), 2), np.int64)
  np.maximum.at(most, np.searchsorted(occurring, longest), lengths)
  most = np.maximum.accumulate(most)  # Of all pairs up to a length, so that shapes grow on both sides.
  rows_L = tokens // most.max(axis=1) // devices * devices
  if not rows_L[-1]:
    raise ValueError(
      f'{tokens=} has no room for a pair of {occurring[-1]} tokens on each of {devices} devices: '
      f'set tokens to {occurring[-1] * devices} or more, or lower max_length.'
    )
  borders = _borders(counts_L, rows_L, most.sum(axis=1), buckets)
  shapes = tuple(Shape(int(rows_L[border]), *map(int, most[border])) for border in borders)
  pairs = np.bincount(assign(lengths, shapes), minlength=len(shapes))
  return tuple(_lowered(shape, int(n), devices) for shape, n in zip(shapes, pairs) if n)


def _lowered(shape: Shape, pairs: int, devices: int) -> Shape:
  """Returns a shape with no more rows than as many batches need for all pairs of the bucket."""
  batches = -(-pairs // shape.rows)
  each = -(-pairs // batches)
  return shape._replace(rows=-(-each // devices) * devices)


def assign(lengths: np.ndarray, shapes: tuple[Shape, ...]) -> np.ndarray:
  """Returns the first bucket that each pair fits into, int [pairs]; the number of buckets for pairs that fit into none."""
  fits = [(lengths[:, 0] <= shape.S) & (lengths[:, 1] <= shape.T) for shape in shapes]
  return np.argmax(np.stack([*fits, np.ones(len(lengths), bool)]), axis=0)
