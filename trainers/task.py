"""The interface between the training loop and a trainer: a Task has parameters, losses, batches and evaluation."""

import abc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trainers.start import other_tokenizer
from trainers.step import Context, terms

Batch = dict[str, np.ndarray]


class Task(abc.ABC):
  """Base class of tasks. An argument `rows` is the part of a batch that this process reads."""

  trainer: str
  """Name of the trainer, kept in config.json; `jaxlm.models.registry` finds the loader of its models by it."""
  batch_size: int
  """Number of rows of a batch over all devices and hosts."""
  unit: str = 'tokens'
  """Unit in which the weight of the loss's first term counts; throughput is logged as UNIT_per_second."""
  loss_label: str = 'loss (nats per token)'
  """Label of the loss axis in the plot."""
  best_metric: str = 'loss'
  """Held-out metric by which the best checkpoint is chosen, if the config names none."""
  higher_is_better: tuple[str, ...] = ()
  """Metrics that are better when higher; all others are better when lower."""
  host_metrics: tuple[str, ...] = ()
  """Names of the metrics that `evaluate_on_host` returns."""
  learning_rates: tuple[tuple[str, float], ...] = ()
  """Ends of the paths of parameters, with their learning rates divided by that of all other parameters."""
  kept: tuple[str, ...] = ()
  """Settings that a resumed run ignores, because files written by `save_assets` depend on their first values."""

  @abc.abstractmethod
  def init_params(self, key: jax.Array) -> Any:
    """Returns new parameters. Runs under jit."""

  def given_params(self) -> Any:
    """Returns parameters, on the run's devices, with which a new run begins; their shapes are those of `init_params`.

    None: the parameters of the config's `start`, or new ones if it has none.
    """
    return None

  def frozen(self) -> Any:
    """Returns a tree of arrays for `Context.frozen` that are not trained, such as a target, a teacher or a trie.

    They are sharded like parameters, and are not saved in checkpoints.
    """
    return ()

  @abc.abstractmethod
  def loss(self, params: Any, batch: Any, context: Context) -> Any:
    """Returns {name: Term}, or (total, weight) for a single term; see `trainers.step`."""

  @abc.abstractmethod
  def batch(self, step: int, rows: slice) -> Batch:
    """Returns `rows` of the batch of a step. It must depend only on the task, its seed and the step."""

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    """Yields `rows` of held-out batches of batch_size, padded with rows of weight 0; the same batches every time."""
    return ()

  def eval_sums(self, params: Any, batch: Any, context: Context) -> dict[str, jax.Array]:
    """Returns sums over a batch, from which `eval_metrics` computes metrics."""
    sums = {}
    for name, term in terms(self.loss(params, batch, context)).items():
      sums |= {name: term.total, f'{name}/weight': term.weight}
      if term.factor is not None:
        sums[f'{name}/factor'] = term.factor * term.weight
    return sums

  def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
    """Returns metrics from sums over all held-out batches; the plot shows 'loss'."""
    names = [name for name in sums if f'{name}/weight' in sums]
    means = {name: sums[name] / max(sums[f'{name}/weight'], 1e-8) for name in names}
    factor = lambda name: sums[f'{name}/factor'] / max(sums[f'{name}/weight'], 1e-8)
    return means | {'loss': sum(factor(name) * means[name] for name in names if f'{name}/factor' in sums)}

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    """Returns the metrics `host_metrics`, which are not sums over batches: those of decoded text or of ranked items.

    Every process calls it, and must return the same metrics.

    Args:
      params: on one device if every device holds all of them, otherwise sharded as in training.
      frozen: like `params`.
      stop: returns whether a signal asks to stop the evaluation; it must then return None, and a resumed run evaluates again. All
        processes must call it equally often, for example after each batch.
      say: prints a text.
    """
    return {}

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    """Returns the metrics of an evaluation that are printed; all metrics are logged."""
    return metrics

  def activation_bytes(self, rows: int) -> int | None:
    """Returns an estimate of the bytes that the forward pass keeps for `rows` rows on one device, or None."""
    return None

  def describe(self) -> str:
    """Returns a line about the data, for the start of a run."""
    return ''

  def data_notes(self, step: int) -> dict[str, Any]:
    """Returns JSON values for the notes of a checkpoint: what the data are, and how far they are read before `step`."""
    return {}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Continues the data at `step` from the position in `notes`, which `data_notes` made; returns messages to print.

    `before`: the config of the run so far. `notes` is {} in checkpoints of older versions.
    """
    return []

  def begin(self, start: str, directory: Path) -> Iterable[str]:
    """Returns what to tell the user about the run `start` with whose parameters the run in `directory` begins."""
    said = other_tokenizer(start, directory)
    return [] if said is None else [said]

  def save_assets(self, directory: Path) -> None:
    """Writes files that the run directory needs besides checkpoints, such as a tokenizer. Called again when a run resumes."""

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    """Called in process 0 after the last step, when everything is saved, for samples, plots and the next command."""
