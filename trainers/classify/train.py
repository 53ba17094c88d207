"""Runs the training of a classifier from its config to the last checkpoint. JAX is imported when `main` is called."""

import dataclasses
from typing import Any

from jaxlm.exam_config import Backbone
from trainers.classify.config import ClassifyConfig
from trainers.config import ConfigError


def main(config: ClassifyConfig):
  """Trains, or resumes, the run in config.run.directory; returns the last TrainState.

  Raises:
    ConfigError, DataError, CheckpointError, DivergedError: see their messages.
    trainers.loop.Stopped: a signal stopped the run after it was saved.
  """
  from trainers import distributed, loop, run_directory
  from trainers.classify import data, task

  if not config.data.source:
    raise ConfigError(
      'data.source names no texts: pass --data.source, such as docstrings, r8, tfds:ag_news_subset or train.csv.'
    )
  if config.model.encoder == 'lm' and config.lm is None:
    raise ConfigError(
      "model.encoder='lm' reads the hidden states of a language model: name one with --lm, such as smollm2."
    )
  distributed.initialize(config.distributed)
  directory = config.run.directory or 'runs/classify'
  config = dataclasses.replace(config, run=dataclasses.replace(config.run, directory=directory))
  run_directory.check_start(directory, config.start)
  layout = distributed.make_layout(config.mesh)
  lm = None if config.lm is None else _language_model(config, layout)
  parts = data.open_parts(config.data)
  reader = data.make_reader(config.data, parts, directory, lm, config.start)
  model = config.model.replace(columns=reader.columns, vocab_size=reader.words.vocab_size)
  if lm is not None:
    from jaxlm.text_classifier import weights_digest

    digest = '' if model.train_lm else weights_digest(lm.params)
    model = model.replace(lm=Backbone(config.lm, digest, lm.config))
  config = dataclasses.replace(config, model=model)
  encoded = data.encode(parts, reader, model, config.data)
  if model.has_frozen_lm:
    encoded = data.with_states(encoded, lm, model, config)
  return loop.fit(task.Classification(config, reader, encoded, lm, layout), config)


def _language_model(config: ClassifyConfig, layout: Any):
  """Returns the language model of --lm. Raises ConfigError if it cannot read texts for a classifier."""
  import jaxlm
  from jaxlm.language_model import LanguageModel

  dtype = 'float32' if config.model.train_lm else config.lm_dtype
  lm = jaxlm.load(config.lm, dtype=dtype, mesh=None if layout.mapped else layout.mesh)
  if not isinstance(lm, LanguageModel):
    raise ConfigError(
      f'--lm {config.lm} is a {type(lm).__name__}; a classifier reads a model of tokens alone, such as smollm2 or minilm.'
    )
  if lm.config.direction == 'reverse':
    raise ConfigError(f"--lm {config.lm} has direction='reverse'; a classifier gives it texts from the beginning.")
  if lm.tokenizer is None:
    raise ConfigError(f'--lm {config.lm} has no tokenizer, so it cannot read text.')
  if config.model.max_length > lm.config.max_length:
    raise ConfigError(
      f'model.max_length={config.model.max_length} is longer than --lm {config.lm} reads: {lm.config.max_length}.'
    )
  return lm
