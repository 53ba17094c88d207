"""Sentence pairs that the tests of translation train on."""

import itertools

import pytest

from jaxlm.data import grammar


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """Two files of a small generated language, word for word."""
  folder = tmp_path_factory.mktemp('pairs')
  for split, size in (('train', 160), ('valid', 24)):
    language = grammar.Phrases(split=split, nouns=6, verbs=4, adjectives=2, adverbs=2, longest=6, **grammar.CERTAIN)
    lines = (f'{source}\t{target}\n' for source, target in itertools.islice(language, size))
    (folder / f'{split}.tsv').write_text(''.join(lines))
  return folder
