"""Batches are a function of the step, hold each text once per epoch, and labels that do not fit are named with their line."""

import numpy as np
import pytest

from jaxlm.data import class_batches
from jaxlm.data.class_batches import ClassBatches
from jaxlm.data.labelled import LabelledTexts, Row
from jaxlm.data.text_reader import TextReader
from jaxlm.data.word_vocabulary import build
from jaxlm.errors import DataError
from jaxlm.exam_config import Column, ExamConfig


def texts_of(rows, columns=('topic', 'tags'), multilabel=(False, True)):
  made = [Row(text, labels, f'a.csv, line {i + 2}') for i, (text, labels) in enumerate(rows)]
  return LabelledTexts('a.csv', columns, multilabel, lambda: iter(made))


ROWS = [
  ('one two', (('x',), ('p', 'q'))),
  ('two three', (('y',), ())),
  ('three one two', (None, ('q',))),
  ('one', (('x',), None)),
  ('two two', (('y',), ('p',))),
]
TEXTS = texts_of(ROWS)
READER = TextReader(
  build(text for text, _ in ROWS), (Column('topic', 2), Column('tags', 2, True)), (('x', 'y'), ('p', 'q'))
)
CONFIG = ExamConfig(encoder='gru', max_length=3, columns=READER.columns, vocab_size=READER.words.vocab_size)


def test_labels_are_those_of_all_parts():
  assert class_batches.label_names([TEXTS]) == READER.labels
  more = texts_of([('two', (('a',), ('r',)))])
  assert class_batches.label_names([TEXTS, more]) == (('a', 'x', 'y'), ('p', 'q', 'r'))


@pytest.mark.parametrize(
  'rows, message',
  [
    ([('a', (('x',), ('p',))), ('b', (('x',), ()))], "The column 'topic' of 'a.csv' has only the label 'x'"),
    ([('a', (('x',), ())), ('b', (('y',), ()))], "The column 'tags' of 'a.csv' has no label"),
    ([('a', (None, ('p',)))], "The column 'topic' of 'a.csv' has no label"),
  ],
)
def test_columns_with_nothing_to_tell_apart_are_refused(rows, message):
  with pytest.raises(DataError, match=message):
    class_batches.label_names([texts_of(rows)])


def test_a_batch_holds_ids_and_labels():
  encoded = class_batches.encode(TEXTS, READER, CONFIG)
  batch = encoded.batch(np.array([2, 3]), CONFIG, 3)
  ids = READER.words.ids
  np.testing.assert_array_equal(
    batch['tokens'], [[ids['three'], ids['one'], ids['two']], [ids['one'], 0, 0], [0, 0, 0]]
  )
  np.testing.assert_array_equal(batch['labels_0'], [-1, 0, -1])
  np.testing.assert_array_equal(batch['labels_1'], [[False, True], [False, False], [False, False]])
  np.testing.assert_array_equal(batch['weight'], [1, 1, 0])
  np.testing.assert_array_equal(encoded.counts(0, 2), [2, 2])
  assert len(encoded.digest) == 16 and encoded.digest == class_batches.encode(TEXTS, READER, CONFIG).digest
  other = texts_of([(text, labels if i else (('y',), labels[1])) for i, (text, labels) in enumerate(ROWS)])
  assert class_batches.encode(other, READER, CONFIG).digest != encoded.digest


def test_every_text_is_in_an_epoch_once_and_rows_are_parts_of_a_batch():
  batches = ClassBatches(class_batches.encode(TEXTS, READER, CONFIG), CONFIG, batch_size=2, seed=3)
  order = [int(i) for step in range(10) for i in batches.indices(step)]
  assert [sorted(order[first : first + 5]) for first in range(0, 20, 5)] == [list(range(5))] * 4
  assert len({tuple(order[first : first + 5]) for first in range(0, 20, 5)}) > 1
  whole, part = batches.batch(7), batches.batch(7, slice(1, 2))
  for name, x in part.items():
    np.testing.assert_array_equal(x, whole[name][1:2])
  other = ClassBatches(batches.texts, CONFIG, batch_size=2, seed=4)
  assert [int(i) for step in range(10) for i in other.indices(step)] != order


def test_texts_in_order_fill_the_last_batch_with_rows_of_no_weight():
  found = list(class_batches.in_order(class_batches.encode(TEXTS, READER, CONFIG), CONFIG, 3))
  assert [batch['weight'].tolist() for batch in found] == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
  'row, message',
  [
    (
      ('one', (('z',), ())),
      r"a.csv, line 7: Unknown label of 'topic' 'z'.* Known: x, y. The classifier knows 2 labels",
    ),
    (('one', (('x',), ('pp',))), "a.csv, line 7: Unknown label of 'tags' 'pp'"),
    ((' \t', (('x',), ())), r"a.csv, line 7: the text ' \\t' has no word.*--data.empty skip"),
    (('one', (None, None)), 'a.csv, line 7: the text has no label in topic, tags'),
  ],
)
def test_texts_and_labels_that_do_not_fit_are_named(row, message):
  with pytest.raises(DataError, match=message):
    class_batches.encode(texts_of([*ROWS, row]), READER, CONFIG)


def test_other_columns_and_no_texts_are_refused_and_empty_ones_skipped_if_asked_for():
  with pytest.raises(DataError, match="'a.csv' has the label columns topic; the classifier has topic, tags .several"):
    class_batches.encode(texts_of([('one', (('x',),))], ('topic',), (False,)), READER, CONFIG)
  with pytest.raises(DataError, match="'a.csv' holds no text"):
    class_batches.encode(texts_of([]), READER, CONFIG)
  encoded = class_batches.encode(texts_of([('', (('x',), ())), *ROWS]), READER, CONFIG, on_empty='skip')
  assert len(encoded) == 5 and encoded.skipped == 1
