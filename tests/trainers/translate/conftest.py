"""Sentence pairs that the tests of translation train on."""

import pytest

from tests.trainers.translate.pairs_made import written_pairs


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """Two files of a small generated language, word for word."""
  return written_pairs(tmp_path_factory.mktemp('pairs'))
