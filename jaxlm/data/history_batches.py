"""Rows of users' histories in tokens, and batches as a function of (rows, seed, step).

A row is BOS and the identifiers of at most H + 1 items in order of time: each item is predicted from at most H items before it, as a
recommender does. A batch has

  tokens, targets   int32 [B, T], T = (H + 1) L: a position's target is the next token
  mask              float32 [B, T], 1 where the target counts
  prompt            int32 [B]: number of tokens before the identifier of the row's last item
  row               int32 [B]: number of the row
  weight            float32 [B], 0 for rows that only fill a batch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
from typing import Literal

import numpy as np

from jaxlm import errors
from jaxlm.data.catalogue import BOS, PAD, Catalogue
from jaxlm.data.interactions import TRAIN, Histories

Batch = dict[str, np.ndarray]
Predict = Literal['all', 'last']


@dataclasses.dataclass(frozen=True)
class Rows:
  """Items of each row, and whether the first of them is predicted too (from BOS alone)."""

  items: tuple[np.ndarray, ...]
  whole: tuple[bool, ...]

  def __len__(self) -> int:
    return len(self.items)

  @functools.cached_property
  def digest(self) -> str:
    text = repr([(items.tolist(), whole) for items, whole in zip(self.items, self.whole)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def windows(sequences: Sequence[np.ndarray], history: int) -> Rows:
  """Returns rows in which each item of each sequence is predicted once, from at most `history` items before it.

  A longer sequence has several rows, from its end to its beginning; neighbours share an item, which only the earlier row predicts.
  """
  items, whole = [], []
  for sequence in sequences:
    end = len(sequence)
    while end > 0:
      start = max(0, end - history - 1)
      items.append(np.asarray(sequence[start:end]))
      whole.append(start == 0)
      end = start + 1 if start else 0
  return Rows(tuple(items), tuple(whole))


def prefixes(sequences: Sequence[np.ndarray], history: int, most: int | None = None, seed: int = 0) -> Rows:
  """Returns rows that end at each item but the first of each sequence; `most`: a random choice of so many rows."""
  places = [(s, end) for s, sequence in enumerate(sequences) for end in range(2, len(sequence) + 1)]
  if most is not None and most < len(places):
    chosen = np.random.default_rng([seed, 1]).permutation(len(places))[:most]
    places = [places[i] for i in sorted(chosen)]
  spans = [(s, max(0, end - history - 1), end) for s, end in places]
  return Rows(tuple(np.asarray(sequences[s][a:b]) for s, a, b in spans), tuple(a == 0 for _, a, _ in spans))


def training_sequences(histories: Histories) -> list[np.ndarray]:
  """Returns the training items of each user."""
  return [histories.of(u, TRAIN) for u in range(len(histories))]


@functools.lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of `count` rows in an epoch."""
  return np.random.default_rng([seed, epoch]).permutation(count)


@dataclasses.dataclass(frozen=True)
class HistoryBatches:
  """Infinite shuffled batches of rows.

  Attributes:
    predict: 'all': every item of a row counts; 'last': its last item alone, as in AtSpeed's code.
  """

  rows: Rows
  catalogue: Catalogue
  batch_size: int
  predict: Predict = 'all'
  seed: int = 0

  def __post_init__(self):
    if not len(self.rows):
      raise errors.DataError('There are no histories to train on.')
    longest = max(map(len, self.rows.items))
    if longest > self.catalogue.history + 1:
      raise errors.DataError(
        f'A row has {longest} items; the catalogue allows {self.catalogue.history} and the next one.'
      )

  @property
  def steps_per_epoch(self) -> float:
    return len(self.rows) / self.batch_size

  def batch(self, step: int, rows: slice | None = None) -> Batch:
    """Returns `rows` of the batch of a step; None: all rows."""
    places = step * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    n = len(self.rows)
    numbers = [int(shuffled(n, self.seed, p // n)[p % n]) for p in places.tolist()]
    return encode(self.rows, numbers, self.catalogue, self.predict)

  def in_order(self, batch_size: int, rows: slice | None = None) -> Iterator[Batch]:
    """Yields `rows` of batches of all rows in their order; the last one is filled with rows of weight 0."""
    for first in range(0, len(self.rows), batch_size):
      numbers = [i if i < len(self.rows) else -1 for i in range(first, first + batch_size)]
      yield encode(self.rows, numbers[rows or slice(None)], self.catalogue, self.predict)


def encode(rows: Rows, numbers: Sequence[int], catalogue: Catalogue, predict: Predict) -> Batch:
  """Returns the batch of some rows; -1 stands for an empty row of weight 0."""
  L, B = catalogue.depth, len(numbers)
  T = (catalogue.history + 1) * L
  whole = np.full((B, T + 1), PAD, np.int32)
  whole[:, 0] = BOS
  mask = np.zeros((B, T), np.float32)
  prompt = np.ones(B, np.int32)
  for b, number in enumerate(numbers):
    if number < 0:
      continue
    items = rows.items[number]
    end = len(items) * L
    whole[b, 1 : end + 1] = catalogue.tokens[items].reshape(-1)
    prompt[b] = end + 1 - L
    first = prompt[b] - 1 if predict == 'last' else 0 if rows.whole[number] else L
    mask[b, first:end] = 1
  numbers = np.asarray(numbers, np.int32)
  return {
    'tokens': whole[:, :-1], 'targets': whole[:, 1:], 'mask': mask, 'prompt': prompt, 'row': np.maximum(numbers, 0),
    'weight': (numbers >= 0).astype(np.float32),
  }  # fmt: skip
