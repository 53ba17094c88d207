"""Texts with the same words get the same vector, and rare shared words bring texts together."""

import numpy as np
import pytest

from jaxlm.data import text_features
from jaxlm.errors import DataError


def test_similar_texts_have_similar_vectors():
  texts = ['star war', 'war star', 'star trek', 'love story', 'love letter', 'the the love', 'war room']
  x = text_features.word_vectors(texts, 2)
  assert x.shape == (7, 2) and x.dtype == np.float32
  np.testing.assert_allclose(x[0], x[1], atol=1e-6)
  near = lambda a, b: float(x[a] @ x[b] / np.linalg.norm(x[a]) / np.linalg.norm(x[b]))
  assert near(0, 2) > near(0, 3) and near(3, 4) > near(3, 6)
  np.testing.assert_array_equal(text_features.word_vectors(texts, 2), x)
  assert text_features.word_vectors(texts, 64).shape[1] < 7


def test_texts_without_shared_words_are_refused():
  with pytest.raises(DataError, match='No two items share a word'):
    text_features.word_vectors(['a', 'b'])
