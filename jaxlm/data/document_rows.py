"""Batches in which each row is the beginning of one document, padded on the right: for texts that make sense only from their start.

  row(s, r) = document[: length + 1],   document = shuffle(seed, epoch)(s * batch_size + r)

The rest of a longer document is not used. As in `packing`, a batch is a pure function of (corpus, seed, step).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxlm.data import packing


def document_row(ids_S: np.ndarray, length: int, first: int) -> packing.Batch:
  """Returns one document as arrays [length]: tokens, targets int32 and mask float32, 0 after its end.

  `first`: number of tokens at the beginning that are no targets; the document's first token never is one.
  """
  ids_S = ids_S[: length + 1]
  n = len(ids_S) - 1
  row = {name: np.zeros(length, np.int32) for name in ('tokens', 'targets')} | {'mask': np.zeros(length, np.float32)}
  row['tokens'][:n], row['targets'][:n] = ids_S[:-1], ids_S[1:]
  row['mask'][max(first - 1, 0) : n] = 1
  return row


@dataclasses.dataclass(frozen=True)
class DocumentBatches(packing.Batches):
  """Infinite shuffled training batches of a corpus, one document in a row.

  `prompts`: for each document, the number of tokens at its beginning that are no targets.
  """

  prompts: Sequence[int] = dataclasses.field(default=(), kw_only=True)

  @property
  def all_windows(self) -> int:
    return self.corpus.num_documents

  def row_of_window(self, index: int) -> packing.Batch:
    return document_row(self.corpus.document(index), self.length, self.prompts[index] if len(self.prompts) else 1)


@dataclasses.dataclass(frozen=True)
class EvalDocuments(packing.EvalBatches):
  """Batches of a whole corpus in order, one document in a row; `prompts` as in `DocumentBatches`. Missing rows have mask 0."""

  prompts: Sequence[int] = dataclasses.field(default=(), kw_only=True)

  @property
  def windows(self) -> int:
    return self.corpus.num_documents

  def row(self, index: int) -> packing.Batch:
    if index >= self.windows:
      return document_row(np.zeros(1, np.int32), self.length, 1)
    return document_row(self.corpus.document(index), self.length, self.prompts[index] if len(self.prompts) else 1)
