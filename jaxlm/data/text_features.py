"""Vectors of texts without a language model: TF-IDF of their words, reduced to a few dimensions by a singular value decomposition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import math
import re
from typing import TYPE_CHECKING

import numpy as np

from jaxlm import errors

if TYPE_CHECKING:
  from jaxtyping import Float

WORD = re.compile(r'\w+')


def word_vectors(texts: Sequence[str], dim: int = 64) -> Float[np.ndarray, 'n D']:
  """Returns float32 vectors of texts; texts with the same words get the same vector. D is `dim`, or less for few texts or words.

  Raises:
    DataError: no two texts share a word, so nothing says which are similar.
  """
  counts = [Counter(word.lower() for word in WORD.findall(text)) for text in texts]
  seen = Counter(word for count in counts for word in count)
  column = {word: i for i, word in enumerate(sorted(word for word, n in seen.items() if n > 1))}
  if not column:
    raise errors.DataError(
      'No two items share a word in their texts, so nothing says which are similar: name more columns with --data.text, or choose other '
      'features.'
    )
  import scipy.sparse
  import scipy.sparse.linalg

  rows, columns, values = [], [], []
  for i, count in enumerate(counts):
    for word, n in count.items():
      if word in column:
        rows.append(i)
        columns.append(column[word])
        values.append((1 + math.log(n)) * math.log(len(texts) / seen[word]))
  matrix = scipy.sparse.csr_array((values, (rows, columns)), shape=(len(texts), len(column)))
  length = np.sqrt((matrix * matrix).sum(axis=1))
  matrix = scipy.sparse.diags_array(1 / np.maximum(length, 1e-12)) @ matrix
  most = min(dim, min(matrix.shape) - 1)
  if most < 1:
    return matrix.toarray().astype(np.float32)
  start = np.random.default_rng(0).standard_normal(min(matrix.shape))
  u, s, _ = scipy.sparse.linalg.svds(matrix.tocsc(), k=most, v0=start)
  order = np.argsort(-s, kind='stable')
  return (u * s)[:, order].astype(np.float32)
