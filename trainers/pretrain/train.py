"""Runs pretraining from its config to the last checkpoint. JAX is imported when `main` is called."""

from collections.abc import Collection
import dataclasses

from jaxlm.config import SIGNAL_IDS
from trainers.pretrain.config import PretrainConfig


def main(config: PretrainConfig, explicit: Collection[str] = ()):
  """Trains, or resumes, the run in config.run.directory; returns the last TrainState.

  Args:
    config: with a `start`, only dtype, remat, implementation, dropout and the `explicit` fields of `config.model` are used.
    explicit: fields of the model that the user set; they must fit the model of `start`.

  Raises:
    ConfigError, DataError, CheckpointError, DivergedError: see their messages.
    trainers.loop.Stopped: a signal stopped the run after it was saved.
  """
  from trainers import distributed, loop, run_directory
  from trainers.pretrain import task

  distributed.initialize(config.distributed)
  directory = config.run.directory or 'runs/pretrain'
  config = dataclasses.replace(config, run=dataclasses.replace(config.run, directory=directory))
  run_directory.check_start(directory, config.start)
  if config.start is not None:
    from trainers.pretrain import continued

    config, tokenizer, params = continued.begin(config, directory, explicit)
    return loop.fit(task.LanguageModeling(config, tokenizer, params), config)
  tokenizer = task.load_tokenizer(config.data, directory)
  signal = config.reverse.signal
  size = tokenizer.vocab_size + SIGNAL_IDS[signal]
  model = config.model.replace(vocab_size=size, direction=config.direction, direction_signal=signal)
  config = dataclasses.replace(config, model=model)
  return loop.fit(task.LanguageModeling(config, tokenizer), config)
