"""Selects the parameters of a run by its evaluations, after the last step. The selected ones lie in RUN/average, from where `jaxlm.load`
takes them."""

import json
from pathlib import Path
import shutil
from typing import Any

from jaxlm.io import checkpoint
from trainers import averaging, best, metrics


def selected_step(task: Any, directory: Path, *, last: bool = False) -> int:
  """Returns the step of the best evaluation of a run, or its last step if `last` says so.

  A run with `average_last` has its average, which is not a single step's: the last step stands for it.
  """
  there = checkpoint.steps(directory / 'checkpoints')
  config = task.config
  if last or config.run.average_last:
    return there[-1]
  found = best.first(config.run, task).noted({}, metrics.read(directory)).step
  return found if found in there else there[-1]


def select(directory: Path, step: int, last: int) -> None:
  """Makes `jaxlm.load` open the parameters of a step: those of an earlier step are kept as the average of one checkpoint."""
  folder = directory / checkpoint.AVERAGE / str(last)
  if folder.is_dir() and checkpoint.read_notes(folder).get('averaged') != [step]:
    shutil.rmtree(folder)  # An earlier selection, by another setting.
  if step != last and not folder.is_dir():
    averaging.save(directory, last, checkpoint.load_run(directory, 'float32', step=step)[1], [step])


def measured(path: Path, facts: dict[str, Any]) -> bool:
  """Returns whether a file of results has 'metrics', and was written for the same facts."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return False
  return all(found.get(name) == value for name, value in facts.items()) and 'metrics' in found
