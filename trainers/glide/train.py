"""Runs the training of a draft from its config to the last checkpoint. JAX is imported when `main` is called."""

import dataclasses

from trainers.glide.config import GlideTrainConfig


def main(config: GlideTrainConfig):
  """Trains, or resumes, the run in config.run.directory; returns the last TrainState.

  Raises:
    ConfigError, DataError, CheckpointError, DivergedError: see their messages.
    trainers.loop.Stopped: a signal stopped the run after it was saved.
  """
  from trainers import distributed, loop, run_directory
  from trainers.glide import target, task, texts

  distributed.initialize(config.distributed)
  directory = config.run.directory or 'runs/glide'
  config = dataclasses.replace(config, run=dataclasses.replace(config.run, directory=directory))
  run_directory.check_start(directory, config.start)
  config = target.named(config, directory)
  layout = distributed.make_layout(config.mesh)
  lm = target.load(config, directory, layout.mesh)
  config = dataclasses.replace(config, model=target.draft_config(config, lm))
  data = texts.of(config, lm, layout)
  return loop.fit(task.DraftTraining(config, lm, data), config)
