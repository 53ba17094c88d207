"""Reversal of packed rows is what reversing each document's list is."""

import numpy as np

from jaxlm.data.reverse import reverse

BOS, EOS = 1, 2


def packed(rng, length: int):
  """Returns (ids, segments) of documents that follow each other, the first and the last cut, and padding."""
  ids, segments = [], []
  for segment in range(1, 9):
    document = [BOS, *rng.integers(3, 50, rng.integers(0, 6)).tolist(), EOS]
    ids += document
    segments += [segment] * len(document)
  start = rng.integers(0, 4)
  ids, segments = ids[start : start + length], segments[start : start + length]
  keep = rng.integers(length // 2, length + 1)
  pad = length - min(keep, len(ids))
  return ids[: length - pad] + [0] * pad, segments[: length - pad] + [0] * pad


def by_lists(ids, segments, which):
  out = []
  for segment in dict.fromkeys(segments):
    document = [i for i, s in zip(ids, segments) if s == segment]
    if segment and segment in which:
      head = [BOS] if document[0] == BOS else []
      tail = [EOS] if document[-1] == EOS and document[len(head) :] else []
      content = document[len(head) : len(document) - len(tail)]
      document = head + content[::-1] + tail
    out += document
  return out


def test_it_is_each_documents_list_reversed():
  rng = np.random.default_rng(0)
  for _ in range(1000):
    rows = [packed(rng, 24) for _ in range(3)]
    ids, segments = (np.array(x) for x in zip(*rows))
    chosen = {s for s in range(1, 9) if rng.random() < 0.6}
    fixed, which = np.isin(ids, (BOS, EOS)), np.isin(segments, list(chosen))
    found = reverse(ids, segments, fixed, which)
    assert found.tolist() == [by_lists(*row, chosen) for row in rows]
    assert (reverse(found, segments, fixed, which) == ids).all()
    assert (found[fixed | (segments == 0)] == ids[fixed | (segments == 0)]).all()


def test_short_documents():
  one = np.array([[BOS, 7, EOS, BOS, EOS, 9, 0, 0]])
  segments = np.array([[1, 1, 1, 2, 2, 3, 0, 0]])
  assert (reverse(one, segments, np.isin(one, (BOS, EOS))) == one).all()
  assert reverse(np.array([4, 5, 6]), np.array([1, 1, 1]), np.zeros(3, bool)).tolist() == [6, 5, 4]
