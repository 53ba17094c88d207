"""What differs between trainers: parameters, losses, batches and evaluation. The loop knows none of it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trainers.step import Context, terms

Batch = dict[str, np.ndarray]


class Task:
  """What is trained. Rows are the part of a batch that this process reads."""

  trainer: str
  """Name of the command that made the run, kept in its config.json; `jaxlm.models.registry` knows how to load what it trains."""
  batch_size: int
  """Rows of a batch over all devices and hosts."""
  unit: str = 'tokens'
  """What the weight of the loss's first term counts; throughput is logged as UNIT_per_second."""
  loss_label: str = 'loss (nats per token)'
  """Label of the loss's axis in the plot."""
  best_metric: str = 'loss'
  """Held-out metric that says which checkpoint is the best, where the config names none."""
  higher_is_better: tuple[str, ...] = ()
  """Metrics that are to rise; all others are to fall."""
  host_metrics: tuple[str, ...] = ()
  """Names of what `evaluate_on_host` returns."""
  kept: tuple[str, ...] = ()
  """Settings that a resumed run ignores, because `save_assets` has written what they once said."""

  def init_params(self, key: jax.Array) -> Any:
    raise NotImplementedError

  def given_params(self) -> Any:
    """Returns parameters on the run's devices that a new run begins with, of the shapes of `init_params`.

    None: new parameters or, where the config has a `start`, those of that run.
    """
    return None

  def frozen(self) -> Any:
    """Returns a tree of arrays that the loss reads as `Context.frozen` and that are never trained: a target, a teacher, a trie.

    They lie on the devices as parameters do, and no checkpoint holds them.
    """
    return ()

  def loss(self, params: Any, batch: Any, context: Context) -> Any:
    """Returns {name: Term} or, where there is one term, (total, weight); see `trainers.step`."""
    raise NotImplementedError

  def batch(self, step: int, rows: slice) -> Batch:
    """Returns `rows` of the batch of a step: a function of the task's seed and the step, nothing else."""
    raise NotImplementedError

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    """Yields `rows` of held-out batches of batch_size, padded with rows of weight 0; the same ones every time."""
    return ()

  def eval_sums(self, params: Any, batch: Any, context: Context) -> dict[str, jax.Array]:
    """Returns sums that `eval_metrics` makes metrics of."""
    sums = {}
    for name, term in terms(self.loss(params, batch, context)).items():
      sums |= {name: term.total, f'{name}/weight': term.weight}
      if term.factor is not None:
        sums[f'{name}/factor'] = term.factor * term.weight
    return sums

  def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
    """Returns metrics of the summed sums; 'loss' is the one that the plot shows."""
    names = [name for name in sums if f'{name}/weight' in sums]
    means = {name: sums[name] / max(sums[f'{name}/weight'], 1e-8) for name in names}
    factor = lambda name: sums[f'{name}/factor'] / max(sums[f'{name}/weight'], 1e-8)
    return means | {'loss': sum(factor(name) * means[name] for name in names if f'{name}/factor' in sums)}

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    """Returns the metrics `host_metrics`, which no sum of batches gives: of decoded text, of ranked items.

    Every process calls it, and must return the same.

    Args:
      params: on one device where every device holds all of them, otherwise spread as they are trained.
      frozen: as `params`.
      stop: whether a signal asks to break off; then None is returned, and a resumed run evaluates anew. All processes must ask
        equally often: after each batch, say, and not by the clock.
      say: shows a text.
    """
    return {}

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    """Returns those metrics of an evaluation that are shown on the screen; all are logged."""
    return metrics

  def activation_bytes(self, rows: int) -> int | None:
    """Returns about how much memory the forward pass keeps for `rows` rows on one device."""
    return None

  def describe(self) -> str:
    """Returns a line about the data, for the start of a run."""
    return ''

  def data_notes(self, step: int) -> dict[str, Any]:
    """Returns what a checkpoint notes, as JSON, of the data and of how far it has been read before `step`."""
    return {}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Goes on at `step` from where `data_notes` said the data was; returns what is to be said aloud of it.

    `before` is the config of the run so far; notes are {} in checkpoints that are older than these.
    """
    return []

  def save_assets(self, directory: Path) -> None:
    """Writes what the run directory needs besides checkpoints, such as a tokenizer. May be called again on resuming."""

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    """Runs in one process after the last step, with everything saved: samples, plots, the next command."""
