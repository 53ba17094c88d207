"""A run of translation, from its config to the last checkpoint. JAX is imported as it starts."""

import dataclasses

from trainers.config import ConfigError
from trainers.translate.config import TranslateConfig


def main(config: TranslateConfig):
  """Trains, or resumes, the run in config.run.directory; returns the last TrainState.

  Raises:
    ConfigError, DataError, CheckpointError, DivergedError: see their messages.
    trainers.loop.Stopped: a signal stopped the run, which is saved.
  """
  from trainers import distributed, loop
  from trainers.translate import parallel_task, task

  if not config.data.source:
    raise ConfigError(
      'data.source names no sentence pairs: pass --data.source, such as STEM.{en,de} or libreoffice:en-de.'
    )
  distributed.initialize(config.distributed)
  directory = config.run.directory or 'runs/translate'
  train, valid = task.pairs_of(config.data)
  tokenizers = task.load_tokenizers(config.data, train, directory)
  source, target = tokenizers.source, tokenizers.target
  model = config.model.replace(
    # A model that predicts all tokens at once has a mask beside the tokenizer's ids.
    vocab_size=target.vocab_size + config.model.is_parallel, source_vocab_size=0 if tokenizers.joint else source.vocab_size, start_id=target.bos_id,
    eos_id=target.eos_id, source_eos_id=None if tokenizers.joint else source.eos_id, pad_id=target.pad_id,
  )  # fmt: skip
  config = dataclasses.replace(config, model=model, run=dataclasses.replace(config.run, directory=directory))
  make = parallel_task.ParallelTranslation if model.is_parallel else task.Translation
  return loop.fit(make(config, tokenizers, train, valid), config)
