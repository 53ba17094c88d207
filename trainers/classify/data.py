"""The texts of a run of classification: opened, their words and labels known, and encoded."""

from collections.abc import Iterator
import dataclasses
from pathlib import Path

from jaxlm.data import class_batches, labelled, text_reader, word_vocabulary
from jaxlm.data.class_batches import EncodedTexts
from jaxlm.data.text_reader import TextReader
from jaxlm.errors import CheckpointError
from jaxlm.exam_config import Column, ExamConfig
from jaxlm.io import checkpoint
from jaxlm.language_model import LanguageModel
from trainers.classify.config import ClassDataConfig


@dataclasses.dataclass(frozen=True)
class Data:
  """Encoded texts; `test` is None if there is none."""

  train: EncodedTexts
  valid: EncodedTexts
  test: EncodedTexts | None


def open_parts(data: ClassDataConfig) -> labelled.Parts:
  """Returns the texts that a config names. Raises DataError as `labelled.open_parts`."""
  fields = labelled.Fields(data.text, data.labels, data.multilabel, data.separator, data.header)
  return labelled.open_parts(
    data.source, valid=data.valid_source, test=data.test_source, fields=fields, valid_fraction=data.valid_fraction,
    download=data.download,
  )  # fmt: skip


def make_reader(
  data: ClassDataConfig,
  parts: labelled.Parts,
  directory: str | Path,
  lm: LanguageModel | None,
  start: str | None = None,
) -> TextReader:
  """Returns the words and labels of a run: those that its directory or the run `start` holds, or new ones of the training texts.

  New labels are those of the training and the held-out texts. A label that only test texts have is an error when these are read.

  Raises:
    DataError: there are no labels to tell apart, or no words.
    CheckpointError: `start` is not a run of a classifier.
  """
  if (held := Path(directory) / 'tokenizer').is_dir():
    return text_reader.load(held)
  if start is not None:
    # Parameters belong to words and labels by their numbers, so a run that begins with them has the same words and labels.
    if (trainer := checkpoint.run_config(start).get('trainer')) != 'classify':
      raise CheckpointError(f'--start {start} is a run of {trainer!r}, not of a text classifier.')
    return text_reader.load(Path(start) / 'tokenizer')
  labels = class_batches.label_names([parts.train, parts.valid])
  columns = tuple(map(Column, parts.train.columns, map(len, labels), parts.train.multilabel))
  if lm is not None:
    words: text_reader.Words = text_reader.LmTokens(lm.tokenizer)
  else:
    texts: Iterator[str] = (row.text for row in parts.train)
    words = word_vocabulary.build(texts, data.words, min_texts=data.min_texts, most=data.vocab_size)
  return TextReader(words, columns, labels)


def encode(parts: labelled.Parts, reader: TextReader, model: ExamConfig, data: ClassDataConfig) -> Data:
  """Returns the texts as arrays. Raises DataError as `class_batches.encode`."""
  encoded = lambda part: class_batches.encode(part, reader, model, on_empty=data.empty)
  return Data(encoded(parts.train), encoded(parts.valid), None if parts.test is None else encoded(parts.test))
