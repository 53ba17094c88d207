"""The docstring task is on every machine, has many classes, and no docstring in two splits."""

from jaxlm.data import docstrings, pair_splits


def test_splits_are_apart_and_have_the_same_classes():
  parts = {split: [record for record, _ in docstrings.records(split)] for split in pair_splits.SPLITS}
  keys = {split: {pair_splits.near_key(record['text']) for record in part} for split, part in parts.items()}
  assert not keys['train'] & keys['valid'] and not keys['train'] & keys['test'] and not keys['valid'] & keys['test']
  classes = {split: {record['package'] for record in part} for split, part in parts.items()}
  assert len(classes['train']) >= 10 and classes['train'] == classes['valid'] == classes['test']
  assert {'tkinter', 'asyncio', 'email'} <= classes['train'] and len(parts['train']) > 2000
  assert all(len(record['text'].split()) >= docstrings.LEAST_WORDS for record in parts['test'])
