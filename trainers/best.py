"""Which evaluation of a run is the best so far, and how many came after it."""

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
  """Value of the metric; None before there is one."""
  step: int = 0
  waited: int = 0
  """Evaluations since then."""

  def after(self, step: int, metrics: Mapping[str, float]) -> Best:
    """Returns what is the best after a further evaluation. One whose metric is not finite is worse than any other.

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

  def noted(self, notes: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Best:
    """Returns the best so far of a run that goes on.

    Args:
      notes: `dataclasses.asdict` of an earlier Best; empty in checkpoints that are older than these notes.
      rows: what the run has logged up to its checkpoint, which tells where the notes do not: older ones have none, and they may
        be about another metric.
    """
    if (notes.get('metric'), notes.get('mode')) == (self.metric, self.mode):
      return Best(**notes)
    best, name = self, f'valid/{self.metric}'
    for row in rows:
      if isinstance(row.get(name), int | float):
        best = best.after(row['step'], {self.metric: row[name]})
    return best


def first(config: RunConfig, task: Any) -> Best:
  """Returns the state before any evaluation, with the metric of the config or else of the task."""
  metric = config.best_metric or task.best_metric
  rising = metric in task.higher_is_better if config.best_mode == 'auto' else config.best_mode == 'max'
  return Best(metric, 'max' if rising else 'min')
