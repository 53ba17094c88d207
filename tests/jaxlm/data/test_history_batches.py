"""Rows predict each item of a history once, from the items before it; batches depend on the seed and the step alone."""

import numpy as np
import pytest

from jaxlm.data import catalogue, history_batches
from jaxlm.data.catalogue import BOS, Catalogue
from jaxlm.data.history_batches import HistoryBatches
from jaxlm.errors import DataError

H = 3
ITEMS = Catalogue.from_names(
  [f'i{n}' for n in range(30)], ['t'] * 30, catalogue.code_names(np.array([[n // 6, n % 6] for n in range(30)])),
  np.zeros(30), history=H,
)  # fmt: skip
SEQUENCES = [np.arange(n) + first for n, first in ((1, 0), (2, 1), (4, 3), (5, 7), (9, 12))]


def predictions(batch):
  """Returns (tokens before it, the item that is predicted) of every predicted item of a batch."""
  number = {tuple(row): n for n, row in enumerate(ITEMS.tokens.tolist())}
  found = []
  for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['mask']):
    places = np.flatnonzero(mask)
    assert len(places) % 2 == 0
    found += [(tokens[: p + 1].tolist(), number[tuple(targets[p : p + 2])]) for p in places[::2]]
  return found


def test_windows_predict_each_item_once_from_the_items_before_it():
  rows = history_batches.windows(SEQUENCES, H)
  batch = history_batches.encode(rows, range(len(rows)), ITEMS, 'all')
  found = sorted(predictions(batch), key=lambda one: one[1])
  assert [item for _, item in found] == sorted(np.concatenate(SEQUENCES).tolist())
  before = {item: sequence[:i].tolist() for sequence in SEQUENCES for i, item in enumerate(sequence.tolist())}
  for tokens, item in found:
    known = (len(tokens) - 1) // 2
    assert known <= H and tokens == [BOS, *ITEMS.tokens[before[item][len(before[item]) - known :]].reshape(-1)]
    assert known > 0 or not before[item]


def test_prefixes_end_at_each_item_and_the_last_one_is_predicted():
  rows = history_batches.prefixes(SEQUENCES, H)
  assert len(rows) == sum(len(s) - 1 for s in SEQUENCES)
  batch = history_batches.encode(rows, range(len(rows)), ITEMS, 'last')
  for (tokens, item), items, prompt in zip(predictions(batch), rows.items, batch['prompt']):
    assert item == items[-1] and tokens == ITEMS.prompt(items[:-1]) and len(tokens) == prompt
  some = history_batches.prefixes(SEQUENCES, H, most=5, seed=1)
  again = history_batches.prefixes(SEQUENCES, H, most=5, seed=1)
  assert len(some) == 5 and some.digest == again.digest != history_batches.prefixes(SEQUENCES, H, 5, 2).digest


def test_batches_are_a_function_of_the_step_and_an_epoch_has_each_row_once():
  rows = history_batches.windows(SEQUENCES, H)
  batches = HistoryBatches(rows, ITEMS, 4, seed=3)
  numbers = np.concatenate([batches.batch(step)['row'] for step in range(len(rows))])
  for epoch in numbers.reshape(4, len(rows)):
    assert sorted(epoch) == list(range(len(rows)))
  assert (numbers[: len(rows)] != numbers[len(rows) : 2 * len(rows)]).any()
  for name, whole in batches.batch(5).items():
    np.testing.assert_array_equal(batches.batch(5, slice(1, 3))[name], whole[1:3])


def test_held_out_batches_are_filled_with_rows_of_weight_zero():
  rows = history_batches.windows(SEQUENCES[:3], H)
  found = list(HistoryBatches(rows, ITEMS, 2, 'last').in_order(2))
  assert [batch['weight'].tolist() for batch in found] == [[1, 1], [1, 0]]
  assert found[1]['mask'][1].sum() == 0
  with pytest.raises(DataError, match='There are no histories to train on'):
    HistoryBatches(history_batches.windows([], H), ITEMS, 2)
