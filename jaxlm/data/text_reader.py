"""What a text classifier knows besides its parameters: words or tokens of texts, names of labels, thresholds.

It is saved in the run's folder `tokenizer`: labels.json, words.json or the files of a language model's tokenizer, and thresholds.json,
which is written again when the best parameters are known.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxlm import errors
from jaxlm.data import tokenizers, word_vocabulary
from jaxlm.errors import CheckpointError
from jaxlm.exam_config import Column, ExamConfig

LABELS, WORDS, THRESHOLDS, LM = 'labels.json', 'words.json', 'thresholds.json', 'lm'


class Words(Protocol):
  """Splits texts into words with ids: `word_vocabulary.WordVocabulary`, or `LmTokens`."""

  vocab_size: int

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text."""
    ...

  def pieces(self, text: str) -> list[str]:
    """Returns what each id stands for, as text."""
    ...


@dataclasses.dataclass(frozen=True)
class LmTokens:
  """The tokens of a language model's tokenizer, with BOS if the model expects it, and with the last token of an encoder's texts."""

  tokenizer: Any

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size

  def encode(self, text: str) -> list[int]:
    ids = [int(t) for t in self.tokenizer.encode(text)]
    if not ids:
      return ids
    first = [self.tokenizer.bos_id] if self.tokenizer.adds_bos else []
    return [*first, *ids, *([] if self.last_id is None else [self.last_id])]

  @functools.cached_property
  def last_id(self) -> int | None:
    """The id that ends every text of an encoder such as BERT, which begins them with [CLS]; None for other models."""
    roles = getattr(self.tokenizer, 'role_texts', {})
    return self.tokenizer.eos_id if 'cls_token' in roles and roles['cls_token'] == roles.get('bos_token') else None

  def pieces(self, text: str) -> list[str]:
    return [self.tokenizer.decode([t]) or self.tokenizer.token_text(t) or '<s>' for t in self.encode(text)]


@dataclasses.dataclass(frozen=True)
class TextReader:
  """Words and labels of a classifier.

  Attributes:
    words: splits texts into words.
    columns: label columns.
    labels: names of the labels of each column.
    thresholds: column name -> probability from which each label is predicted, for columns of many labels; {}: not chosen yet.
  """

  words: Words
  columns: tuple[Column, ...]
  labels: tuple[tuple[str, ...], ...]
  thresholds: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def encode(self, text: str, config: ExamConfig) -> list[int]:
    """Returns the ids of the words that the model reads, [] for a text without words."""
    return self._cut(self.words.encode(text), config)

  def pieces(self, text: str, config: ExamConfig) -> list[str]:
    """Returns the words that the model reads."""
    return self._cut(self.words.pieces(text), config)

  def _cut(self, items: list, config: ExamConfig) -> list:
    """Returns as many items as the model reads; a text of an encoder keeps the item that ends it."""
    if len(items) <= config.words:
      return items
    kept = items[len(items) - 1 :] if getattr(self.words, 'last_id', None) is not None else []
    rest, room = items[: len(items) - len(kept)], config.words - len(kept)
    return [*(rest[:room] if config.keep == 'first' else rest[len(rest) - room :]), *kept]

  def save(self, folder: str | Path) -> None:
    """Writes all files into a folder, which is created."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = [
      {'name': column.name, 'multilabel': column.multilabel, 'labels': list(labels)}
      for column, labels in zip(self.columns, self.labels, strict=True)
    ]
    _write(folder / LABELS, columns)
    if isinstance(self.words, word_vocabulary.WordVocabulary):
      _write(folder / WORDS, {'kind': self.words.kind, 'words': self.words.words})
    else:
      self.words.tokenizer.save(folder / LM)

  @staticmethod
  def save_thresholds(folder: str | Path, thresholds: dict[str, np.ndarray]) -> None:
    """Writes the thresholds of the columns with many labels, in place of earlier ones."""
    _write(Path(folder) / THRESHOLDS, {name: list(map(float, values)) for name, values in thresholds.items()})


def load(folder: str | Path) -> TextReader:
  """Returns what `TextReader.save` wrote. Raises CheckpointError that names the file if one is missing or damaged."""
  folder = Path(folder)
  try:
    columns, labels = [], []
    for column in _read(folder / LABELS):
      labels.append(tuple(map(str, column['labels'])))
      columns.append(Column(str(column['name']), len(labels[-1]), bool(column['multilabel'])))
    if (folder / LM).is_dir():
      words: Words = LmTokens(tokenizers.from_directory(folder / LM))
    else:
      fields = _read(folder / WORDS)
      if fields['kind'] not in word_vocabulary.SPLITTERS:
        raise errors.unknown('kind of words', fields['kind'], word_vocabulary.SPLITTERS)
      words = word_vocabulary.WordVocabulary(fields['kind'], tuple(map(str, fields['words'])))
    found = _read(folder / THRESHOLDS) if (folder / THRESHOLDS).is_file() else {}
    thresholds = {str(name): np.asarray(values, np.float64) for name, values in found.items()}
  except (TypeError, KeyError, AttributeError, ValueError) as e:
    if isinstance(e, CheckpointError):
      raise
    raise CheckpointError(f'{folder} does not hold the words and labels of a classifier: {e!r}.') from e
  for column in columns:
    if column.name in thresholds and thresholds[column.name].shape != (column.classes,):
      raise CheckpointError(
        f'{folder / THRESHOLDS} has {thresholds[column.name].size} thresholds for {column.name!r}, which has {column.classes} labels.'
      )
  return TextReader(words, tuple(columns), tuple(labels), thresholds)


def _write(path: Path, value: Any) -> None:
  scratch = path.with_name(f'.{path.name}.tmp')  # A process that is killed leaves the old file or the new one.
  scratch.write_text(json.dumps(value, ensure_ascii=False) + '\n', encoding='utf-8')
  os.replace(scratch, path)


def _read(path: Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as e:
    raise CheckpointError(f'{path} cannot be read: {e}') from e


def padded(ids: Sequence[Sequence[int]], config: ExamConfig) -> tuple[np.ndarray, np.ndarray]:
  """Returns (int32 ids, whether a position is a word), both [B, L], with the padding that the model's config asks for.

  Args:
    ids: at most `config.words` ids for each text.
  """
  tokens = np.zeros((len(ids), config.max_length), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, real, words in zip(tokens, mask, ids):
    first = config.padding_in_front if config.side == 'right' else config.max_length - len(words)
    row[first : first + len(words)] = words
    real[first : first + len(words)] = True
  return tokens, mask
