"""Texts with labels as arrays, and batches as a function of (texts, seed, step).

  row(s, r) = texts[shuffle(seed, epoch)(s * batch_size + r)]

as in `jaxlm.data.packing`. A batch has tokens int32 and mask bool [B, L], weight float32 [B] (0 for rows that only fill the batch), and
for each label column i `labels_i`: int32 [B], -1 for a text without a label, or bool [B, C] for many labels. If a frozen language
model's states were computed before, they are in `states` [B, L, D].
"""

from collections import Counter
from collections.abc import Iterable, Iterator
import dataclasses
import functools
import hashlib
from typing import Literal

import numpy as np

from jaxlm import errors
from jaxlm.data.corpus import TokenCorpus
from jaxlm.data.labelled import LabelledTexts, Row
from jaxlm.data.text_reader import TextReader, padded
from jaxlm.exam_config import ExamConfig

Batch = dict[str, np.ndarray]
OnEmpty = Literal['error', 'skip']


def label_names(parts: Iterable[LabelledTexts]) -> tuple[tuple[str, ...], ...]:
  """Returns the labels of each column, sorted.

  Raises:
    DataError: a column has no label, or only one that all texts have.
  """
  parts = tuple(parts)
  counts: list[Counter[str]] = [Counter() for _ in parts[0].columns]
  for part in parts:
    for row in part:
      for column, labels in zip(counts, row.labels):
        column.update(labels or ())
  for name, several, column in zip(parts[0].columns, parts[0].multilabel, counts):
    if len(column) < (1 if several else 2):
      seen = f'only the label {next(iter(column))!r}' if column else 'no label'
      raise errors.DataError(
        f'The column {name!r} of {parts[0].name!r} has {seen}: there is nothing to tell apart. Name another column with --data.labels.'
      )
  return tuple(tuple(sorted(column)) for column in counts)


def real_rows(texts: Iterable[Row], reader: TextReader, config: ExamConfig, on_empty: OnEmpty) -> Iterator[tuple]:
  """Yields (row, ids) of the texts that have a word. Raises DataError for one that has none, unless it is to be skipped."""
  for row in texts:
    ids = reader.encode(row.text, config)
    if ids:
      yield row, ids
    elif on_empty == 'error':
      raise errors.DataError(
        f'{row.where}: the text {errors.shown(row.text)} has no word. Remove it, or leave such texts out: --data.empty skip.'
      )


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
  """Texts as ids, and their labels as numbers.

  Attributes:
    corpus: the ids of all texts.
    labels: of each column a TokenCorpus: the sorted class numbers of each text, none for a text without a label.
    known: of each column whether a text has labels, which may be none of them.
    skipped: number of texts without a word that were left out.
    states: what a frozen language model says of all tokens, [tokens, D], if it was computed before.
  """

  corpus: TokenCorpus
  labels: tuple[TokenCorpus, ...]
  known: tuple[np.ndarray, ...]
  skipped: int = 0
  states: np.ndarray | None = None

  def __len__(self) -> int:
    return self.corpus.num_documents

  def counts(self, column: int, classes: int) -> np.ndarray:
    """Returns the number of texts of each class."""
    return np.bincount(self.labels[column].tokens, minlength=classes)

  @functools.cached_property
  def digest(self) -> str:
    """Digest of all ids and labels."""
    return hashlib.sha256(' '.join(part.digest for part in (self.corpus, *self.labels)).encode()).hexdigest()[:16]

  def batch(self, indices: np.ndarray, config: ExamConfig, rows: int) -> Batch:
    """Returns a batch of `rows` rows: the texts `indices`, and rows of weight 0 after them."""
    ids = [self.corpus.document(int(i)) for i in indices] + [np.zeros(0, np.int32)] * (rows - len(indices))
    tokens, mask = padded(ids, config)
    batch = {'tokens': tokens, 'mask': mask, 'weight': (np.arange(rows) < len(indices)).astype(np.float32)}
    for i, column in enumerate(config.columns):
      batch[f'labels_{i}'] = self._labels(i, column, indices, rows)
    if self.states is not None:
      batch['states'] = np.zeros((*mask.shape, self.states.shape[1]), self.states.dtype)
      for row, real, index in zip(batch['states'], mask, indices):
        row[real] = self.states[self.corpus.offsets[index] : self.corpus.offsets[index + 1]]
    return batch

  def _labels(self, i, column, indices, rows):
    if not column.multilabel:
      found = np.full(rows, -1, np.int32)
      for row, index in enumerate(indices):
        if self.known[i][index]:
          found[row] = self.labels[i].document(int(index))[0]
      return found
    found = np.zeros((rows, column.classes), bool)
    for row, index in enumerate(indices):
      found[row, self.labels[i].document(int(index))] = True
    return found


def encode(
  texts: LabelledTexts, reader: TextReader, config: ExamConfig, *, on_empty: OnEmpty = 'error'
) -> EncodedTexts:
  """Returns texts as arrays.

  Args:
    texts: texts with the columns of `reader`.
    on_empty: whether a text without a word is an error, or is left out.

  Raises:
    DataError: there is no text, a label is not one of the reader's, a text has no label at all, or the columns are others; the message
      names file and line.
  """
  names = tuple(column.name for column in reader.columns)
  if (texts.columns, texts.multilabel) != (names, tuple(column.multilabel for column in reader.columns)):
    theirs, ours = (
      _described(zip(texts.columns, texts.multilabel)),
      _described((c.name, c.multilabel) for c in reader.columns),
    )
    raise errors.DataError(f'{texts.name!r} has the label columns {theirs}; the classifier has {ours}.')
  numbers = [{label: n for n, label in enumerate(labels)} for labels in reader.labels]
  documents, found, known, total = [], [[] for _ in names], [[] for _ in names], 0

  def counted():
    nonlocal total
    for row in texts:
      total += 1
      yield row

  for row, ids in real_rows(counted(), reader, config, on_empty):
    if all(labels is None for labels in row.labels):
      raise errors.DataError(f'{row.where}: the text has no label in {", ".join(names)}.')
    documents.append(np.asarray(ids, np.int32))
    for i, labels in enumerate(row.labels):
      for label in labels or ():
        if label not in numbers[i]:
          problem = errors.unknown(f'label of {names[i]!r}', label, _some(reader.labels[i], label))
          raise errors.DataError(
            f'{row.where}: {problem} The classifier knows {len(numbers[i])} labels, those of its training texts; leave out texts with '
            'others.'
          )
      found[i].append(sorted(numbers[i][label] for label in labels or ()))
      known[i].append(labels is not None)
  if not documents:
    raise errors.DataError(f'{texts.name!r} holds no text.')
  known_arrays = tuple(np.array(column, bool) for column in known)
  return EncodedTexts(_ragged(documents), tuple(map(_ragged, found)), known_arrays, total - len(documents))


def _described(columns: Iterable[tuple[str, bool]]) -> str:
  return ', '.join(f'{name} (several labels)' if several else name for name, several in columns)


def _ragged(rows: list) -> TokenCorpus:
  """Returns rows of numbers as a corpus. Empty rows are kept, unlike by `TokenCorpus.from_documents`."""
  offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
  return TokenCorpus(np.concatenate([np.zeros(0, np.uint32), *(np.asarray(row, np.uint32) for row in rows)]), offsets)


def _some(labels: tuple[str, ...], near: str, most: int = 20) -> list[str]:
  """Returns the labels for a message; of very many, those that begin with the same letter, at most `most`."""
  same = [label for label in labels if label[:1].lower() == near[:1].lower()]
  return list(labels if len(labels) <= most else (same or labels)[:most])


@dataclasses.dataclass(frozen=True)
class ClassBatches:
  """Infinite shuffled training batches."""

  texts: EncodedTexts
  config: ExamConfig
  batch_size: int
  seed: int = 0

  @property
  def steps_per_epoch(self) -> float:
    return len(self.texts) / self.batch_size

  @functools.cached_property
  def _order(self):
    import grain  # takes a second to import

    # grain shuffles epoch e with seed + e. The seed is hashed, because seed 1 would otherwise repeat the epochs of seed 0.
    seed = int.from_bytes(hashlib.blake2b(str(int(self.seed)).encode(), digest_size=4).digest(), 'big')
    return grain.MapDataset.range(len(self.texts)).shuffle(seed=seed).repeat()

  def indices(self, step: int, rows: slice | None = None) -> np.ndarray:
    """Returns the numbers of the texts in `rows` of the batch of a step."""
    first = int(step) * self.batch_size
    return np.array([int(self._order[i]) for i in range(first, first + self.batch_size)[rows or slice(None)]])

  def batch(self, step: int, rows: slice | None = None) -> Batch:
    """Returns `rows` of the batch of a step; None: all rows."""
    indices = self.indices(step, rows)
    return self.texts.batch(indices, self.config, len(indices))


def in_order(texts: EncodedTexts, config: ExamConfig, batch_size: int) -> Iterator[Batch]:
  """Yields batches of all texts in their order; the last one is filled with rows of weight 0."""
  for first in range(0, len(texts), batch_size):
    indices = np.arange(first, min(first + batch_size, len(texts)))
    yield texts.batch(indices, config, batch_size)
