"""A run of translation, from its config to the last checkpoint. JAX is imported as it starts."""

import dataclasses
from pathlib import Path

from trainers.config import ConfigError
from trainers.translate.config import TranslateConfig


def main(config: TranslateConfig):
  """Trains, or resumes, the run in config.run.directory; returns the last TrainState.

  Raises:
    ConfigError, DataError, CheckpointError, DivergedError: see their messages.
    trainers.loop.Stopped: a signal stopped the run, which is saved.
  """
  from trainers import distributed, loop
  from trainers.translate import distillation, parallel_task, task

  if not config.data.source:
    raise ConfigError(
      'data.source names no sentence pairs: pass --data.source, such as STEM.{en,de} or libreoffice:en-de.'
    )
  directory = config.run.directory or 'runs/translate'
  if config.distill_from is not None and Path(config.distill_from).resolve() == Path(directory).resolve():
    raise ConfigError(
      f'--distill-from {config.distill_from} is the run directory itself: pass --run.directory with another path.'
    )
  distributed.initialize(config.distributed)
  train, valid = task.pairs_of(config.data)
  # Made of the real pairs for a distilled run as well, so that it has the vocabulary of a run without a teacher.
  tokenizers = task.load_tokenizers(config.data, train, directory)
  source, target = tokenizers.source, tokenizers.target
  model = config.model.replace(
    # A model that predicts all tokens at once has a mask beside the tokenizer's ids.
    vocab_size=target.vocab_size + config.model.is_parallel, source_vocab_size=0 if tokenizers.joint else source.vocab_size, start_id=target.bos_id,
    eos_id=target.eos_id, source_eos_id=None if tokenizers.joint else source.eos_id, pad_id=target.pad_id,
  )  # fmt: skip
  config = dataclasses.replace(config, model=model, run=dataclasses.replace(config.run, directory=directory))
  if config.distill_from is not None:
    train = distillation.distilled_pairs(config, train, task.Translation.trainer)
  make = parallel_task.ParallelTranslation if model.is_parallel else task.Translation
  return loop.fit(make(config, tokenizers, train, valid), config)
