"""Keeps track of a run's best evaluation so far, and of the number of evaluations since then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import math
from typing import Any, Literal

from jaxlm import errors
from trainers.config import ConfigError, RunConfig


@dataclasses.dataclass(frozen=True)
class Best:
  """The best evaluation of a run."""

  metric: str
  mode: Literal['min', 'max']
  value: float | None = None
  """Value of the metric; None before the first one."""
  step: int = 0
  waited: int = 0
  """Number of evaluations since then."""

  def after(self, step: int, metrics: Mapping[str, float]) -> Best:
    """Returns the best evaluation after one more. An evaluation whose metric is not finite is never the best.

    Raises:
      ConfigError: the evaluation does not have the metric.
    """
    if self.metric not in metrics:
      raise errors.unknown('run.best_metric', self.metric, metrics, ConfigError)
    value = metrics[self.metric]
    if math.isfinite(value) and (self.value is None or self._better(value)):
      return dataclasses.replace(self, value=value, step=step, waited=0)
    return dataclasses.replace(self, waited=self.waited + 1)

  def _better(self, value: float) -> bool:
    return value < self.value if self.mode == 'min' else value > self.value

  def __str__(self) -> str:
    if self.value is None:
      return f'none of {self.waited} evaluations had a finite {self.metric}'
    return (
      f'the best {self.metric}, {self.value:.4g}, is that of step {self.step}, and {self.waited} evaluations since then were not '
      'better'
    )

  def noted(self, notes: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Best:
    """Returns the best evaluation so far of a run that is resumed.

    Args:
      notes: `dataclasses.asdict` of the Best in the checkpoint; empty in checkpoints of older versions.
      rows: the metrics logged up to the checkpoint. They are used if the notes are empty or about another metric.
    """
    if (notes.get('metric'), notes.get('mode')) == (self.metric, self.mode):
      return Best(**notes)
    best, name = self, f'valid/{self.metric}'
    for row in rows:
      if name in row:
        value = row[name] if isinstance(row[name], int | float) else math.nan
        best = best.after(row['step'], {self.metric: value})
    return best


def first(config: RunConfig, task: Any) -> Best:
  """Returns the state before the first evaluation. The metric is the config's, or the task's if the config names none."""
  metric = config.best_metric or task.best_metric
  rising = metric in task.higher_is_better if config.best_mode == 'auto' else config.best_mode == 'max'
  return Best(metric, 'max' if rising else 'min')
