"""The average of a run's last checkpoints (run.average_last), kept beside them as RUN/average/STEP.

  average = 1/n sum_i params_i                   https://arxiv.org/abs/1706.03762, section 6.1

Only the last checkpoint and those at multiples of run.save_every count. A run that was stopped has additional checkpoints, and must
leave the same average as a run that never stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.io import checkpoint, digest
from trainers.config import RunConfig


def averaged_steps(config: RunConfig, there: Sequence[int]) -> list[int]:
  """Returns the steps that are averaged, of the steps `there` that have a checkpoint, if the newest is the end of the run."""
  if not config.average_last or not there:
    return []
  counted = (
    [step for step in there if step % config.save_every == 0 or step == there[-1]] if config.save_every else there
  )
  return list(counted[-config.average_last :])


def average_checkpoints(folder: str | Path, steps: Sequence[int], abstract: Any) -> Any:
  """Returns the mean of the parameters of several checkpoints, which are read one after the other.

  Args:
    folder: the `checkpoints` folder of a run.
    steps: steps of the checkpoints to average.
    abstract: the parameters as shapes with shardings.

  Raises:
    CheckpointError: a checkpoint cannot be read.
  """
  total = None
  add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
  for step in steps:
    params = checkpoint.read(Path(folder) / str(step), {'params': abstract})['params']
    total = params if total is None else add(total, params)
  return jax.jit(lambda tree: jax.tree.map(lambda x: x / len(steps), tree), donate_argnums=0)(total)


def save(directory: str | Path, step: int, params: Any, steps: Sequence[int]) -> None:
  """Writes the average `params` of the checkpoints `steps` as RUN/average/STEP. Raises CheckpointError if that fails."""
  saver = checkpoint.Checkpointer(Path(directory) / checkpoint.AVERAGE, keep=1)
  try:
    saver.save(step, {'params': params}, {'averaged': list(steps), 'digests': {'params': digest.digests(params)}})
    saver.wait()
  finally:
    saver.close()


def saved(directory: str | Path, step: int) -> bool:
  """Returns whether a run has an average for a step."""
  return step in checkpoint.steps(Path(directory) / checkpoint.AVERAGE)
