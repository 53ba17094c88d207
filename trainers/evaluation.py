"""Evaluation of a run's parameters: metrics from sums over held-out batches, and metrics that only the host can compute."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trainers.distributed import Layout
from trainers.step import Context
from trainers.stopping import StopOnSignal
from trainers.task import Task


class Evaluator:
  """Evaluates parameters on the task's held-out data.

  Args:
    task: the task to evaluate.
    layout: layout of the devices.
    frozen: the task's frozen arrays, on the devices.
    say: prints a text.
  """

  def __init__(self, task: Task, layout: Layout, frozen: Any, say: Callable[[str], None]):
    self.task, self.layout, self.frozen, self.say = task, layout, frozen, say
    self.rows = layout.rows(task.batch_size)
    self._sums = layout.jit(
      lambda params, batch, step, frozen: task.eval_sums(params, batch, Context(step, None, frozen))
    )

  def __call__(self, params: Any, step: int, signals: StopOnSignal) -> dict[str, float] | None:
    """Returns the metrics, {} for a task without held-out data, or None if a signal stopped the evaluation."""
    params = jax.device_put(params, self.layout.shardings(params))
    sums: list[dict[str, jax.Array]] = []
    for batch in self.task.eval_batches(self.rows):
      batch = self.layout.put_whole(batch, self.task.batch_size)
      sums.append(self._sums(params, batch, jnp.int32(step), self.frozen))
      # Without waiting, all batches would be queued on the device at once, and no signal could stop them.
      jax.block_until_ready(sums[-2:][0])
      if signals.stop_evaluation(len(sums)):
        return None
    total = {name: sum(float(s[name]) for s in sums) for name in sums[0]} if sums else {}
    found = self.task.eval_metrics(total) if sums else {}
    local = (self.layout.local(params), self.layout.local(self.frozen))
    measured = self.task.evaluate_on_host(*local, lambda: signals.stop_evaluation(0), self.say)
    return None if measured is None else found | measured

  def metric_names(self, abstract_params: Any, step: int = 0) -> list[str]:
    """Returns the names of the metrics. One batch is read for their shapes, and nothing is computed."""
    batch = next(iter(self.task.eval_batches(self.rows)), None)
    if batch is None:
      return list(self.task.host_metrics)
    shape = lambda x: jax.ShapeDtypeStruct((self.task.batch_size, *x.shape[1:]), x.dtype)
    sums = jax.eval_shape(self._sums, abstract_params, jax.tree.map(shape, batch), jnp.int32(step), self.frozen)
    return [*self.task.eval_metrics(dict.fromkeys(sums, 1.0)), *self.task.host_metrics]
