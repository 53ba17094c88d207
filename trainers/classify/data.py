"""The texts of a run of classification: opened, their words and labels known, and encoded."""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tqdm

from jaxlm import lm_states
from jaxlm.config import computing_fields
from jaxlm.data import class_batches, labelled, text_reader, word_vocabulary
from jaxlm.data.class_batches import EncodedTexts
from jaxlm.data.corpus import cache_folder
from jaxlm.data.text_reader import TextReader
from jaxlm.errors import CheckpointError
from jaxlm.exam_config import Column, ExamConfig
from jaxlm.io import checkpoint
from jaxlm.language_model import LanguageModel
from trainers.classify.config import ClassDataConfig, ClassifyConfig


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


def with_states(data: Data, lm: LanguageModel, model: ExamConfig, config: ClassifyConfig) -> Data:
  """Returns the texts with the states of a frozen language model, or as they are if the config wants no states, or not so many.

  The states lie in the cache folder, in a folder named after the model and the texts.
  """
  parts = [part for part in (data.train, data.valid, data.test) if part is not None]
  size = sum(part.corpus.offsets[-1] for part in parts) * lm.config.model_dim * jnp.dtype(model.dtype).itemsize
  if size > config.lm_cache * 1e6 or config.run.steps * config.data.batch_size < len(data.train):
    return data
  found = {}
  for name in ('train', 'valid', 'test'):
    part = getattr(data, name)
    if part is not None:
      found[name] = dataclasses.replace(part, states=states_of(part, lm, model))
  return dataclasses.replace(data, **found)


def states_of(texts: EncodedTexts, lm: LanguageModel, model: ExamConfig) -> np.ndarray:
  """Returns what a language model says of each token of texts, [tokens, D] in the dtype of `model`, from the cache folder."""
  facts = [lm_states.VERSION, model.lm.digest, computing_fields(lm.config), model.dtype, texts.corpus.digest]
  folder = cache_folder() / 'states' / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
  rows = [texts.corpus.document(i) for i in range(len(texts))]
  lm_config = lm.config.replace(dtype=model.dtype)
  with tqdm.tqdm(total=len(texts), desc=f'States of {model.lm.name}', unit='text', delay=2, leave=False) as bar:
    return lm_states.kept_states(folder, lm.params, lm_config, rows, bar.update)
