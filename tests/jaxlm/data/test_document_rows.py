"""Rows that begin with documents: what is a target, what is padding, and that a batch depends on the step alone."""

import dataclasses

import numpy as np
import pytest

from jaxlm.data.corpus import TokenCorpus
from jaxlm.data.document_rows import DocumentBatches, EvalDocuments, document_row

LENGTHS = (3, 9, 6, 2, 12)
DOCUMENTS = [[10 * i + j for j in range(n)] for i, n in enumerate(LENGTHS, 1)]
CORPUS = TokenCorpus.from_documents(DOCUMENTS)
PROMPTS = (1, 4, 2, 1, 5)


def test_a_row_is_the_beginning_of_a_document():
  row = document_row(np.arange(1, 7), 4, first=3)
  assert row['tokens'].tolist() == [1, 2, 3, 4] and row['targets'].tolist() == [2, 3, 4, 5]
  assert row['mask'].tolist() == [0, 0, 1, 1]
  row = document_row(np.arange(1, 4), 4, first=0)
  assert row['tokens'].tolist() == [1, 2, 0, 0] and row['targets'].tolist() == [2, 3, 0, 0]
  assert row['mask'].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize('prompts', [(), PROMPTS])
def test_an_epoch_has_each_document_once_and_any_part_of_a_batch_is_the_same(prompts):
  batches = DocumentBatches(CORPUS, 5, 8, seed=3, prompts=prompts)
  assert batches.windows == 5
  batch = batches.batch(1)
  assert sorted(batch['tokens'][:, 0] // 10) == [1, 2, 3, 4, 5]
  for tokens, mask in zip(batch['tokens'], batch['mask']):
    i = tokens[0] // 10 - 1
    first = prompts[i] if prompts else 1
    assert mask.sum() == min(LENGTHS[i], 9) - first and mask[: first - 1].sum() == 0
  part = batches.batch(1, slice(2, 4))
  for name, array in part.items():
    np.testing.assert_array_equal(array, batch[name][2:4])
  assert (DocumentBatches(CORPUS, 5, 8, seed=4).batch(1)['tokens'] != batch['tokens']).any()


def test_a_resumed_run_with_another_batch_size_goes_on_behind_the_rows_it_has_read():
  batches = DocumentBatches(CORPUS, 2, 8, prompts=PROMPTS)
  later = dataclasses.replace(batches, batch_size=3, start=(1, 2))
  rows = np.concatenate([batches.batch(step)['tokens'] for step in range(4)])
  np.testing.assert_array_equal(later.batch(1)['tokens'], rows[2:5])
  assert later.prompts == PROMPTS


def test_held_out_documents_come_in_order_and_missing_rows_weigh_nothing():
  held_out = EvalDocuments(CORPUS, 2, 8, prompts=PROMPTS)
  assert len(held_out) == 3 and len(dataclasses.replace(held_out, max_batches=2)) == 2
  batches = list(held_out)
  assert [int(t) // 10 for b in batches for t in b['tokens'][:, 0]] == [1, 2, 3, 4, 5, 0]
  assert [int(m.sum()) for b in batches for m in b['mask']] == [2, 5, 4, 1, 4, 0]
