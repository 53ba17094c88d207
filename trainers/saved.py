"""Saves and restores the checkpoints of a run.

A run resumes from its newest checkpoint that is not damaged. A damaged one is reported and moved to RUN/damaged-checkpoints, and
the one before it is used: the lost steps are trained again, because one damaged number could spoil the run.
"""

from collections.abc import Callable, Collection, Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint, digest
from trainers import distributed
from trainers.step import TrainState


@dataclasses.dataclass(frozen=True)
class Notes:
  """The notes that a checkpoint has beside its arrays. The defaults hold for older checkpoints that lack a field."""

  tokens: float = 0.0
  """Number of targets (or of the task's unit) trained on so far."""
  seed: int = 0
  evaluation_due: bool = False
  """Whether a signal stopped the evaluation of this step, so that it must be done after resuming."""
  learning_rate: float | None = None
  """Learning rate of the next step."""
  best: dict[str, Any] = dataclasses.field(default_factory=dict)
  """The best evaluation so far, a trainers.best.Best as a dictionary."""
  data: dict[str, Any] = dataclasses.field(default_factory=dict)
  """The task's notes about its data, and the position up to which they were read."""

  @classmethod
  def read(cls, folder: Path) -> 'Notes':
    """Returns the notes of a checkpoint. Raises CheckpointError, naming file and field, if a value has a wrong type."""
    found, kept = checkpoint.read_notes(folder), {}
    number = (int, float)
    kinds = {'tokens': number, 'seed': int, 'evaluation_due': bool, 'learning_rate': number, 'best': dict, 'data': dict}
    for name, kind in kinds.items():
      value = found.get(name)
      if value is None:
        continue
      good = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
      if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise CheckpointError(
          f'{folder / checkpoint.NOTES / "metadata"}: {name}={value!r} has a wrong type or is not finite.'
        )
      kept[name] = value
    return cls(**kept)


class RunCheckpoints:
  """Saves the states of a run and restores the newest good one. Every process must call every method."""

  def __init__(self, directory: Path, *, keep: int, keep_also: Callable[[Sequence[int]], Collection[int]]):
    self.directory, self._keep, self._keep_also = directory, keep, keep_also
    self._saver: checkpoint.Checkpointer | None = None

  def latest(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None."""
    found = checkpoint.steps(self.directory)
    return found[-1] if found else None

  def save(self, step: int, state: TrainState, notes: Notes) -> None:
    """Saves in the background. Raises CheckpointError if this save, or the one before it, could not be written."""
    if self._saver is None:
      self._saver = checkpoint.Checkpointer(self.directory, keep=self._keep, keep_also=self._keep_also)
    items = {'params': state.params, 'ema': state.ema, 'state': {'step': state.step, 'opt': state.opt_state}}
    found = {name: digest.digests(tree) for name, tree in items.items() if tree is not None}
    self._saver.save(step, items, notes=dataclasses.asdict(notes) | {'digests': found})

  def wait(self) -> None:
    if self._saver is not None:
      self._saver.wait()

  def close(self) -> None:
    if self._saver is not None:
      self._saver.close()

  def restore(self, abstract: TrainState, say: Callable[[str], None]) -> tuple[int, TrainState, Notes]:
    """Returns (step, state, notes) of the newest checkpoint that is not damaged.

    Raises:
      CheckpointError: no checkpoint can be used; the message is that of the newest one.
    """
    first, bad = None, []
    for step in reversed(checkpoint.steps(self.directory)):
      folder, error, found = self.directory / str(step), None, None
      try:
        found = Notes.read(folder), _read_state(folder, abstract)
      except CheckpointError as e:
        error = e
      # All hosts must resume from the same step, so a step that one host cannot read is used by none.
      if distributed.all_hosts(error is None):
        notes, state = found
        self._set_aside(bad, say)
        return step, state, notes
      error = error or CheckpointError(f'{folder} cannot be read by another host; its message says why.')
      first = first or error
      bad.append((step, error))
    raise CheckpointError(
      f'{first} No checkpoint of this run can be used: restore the folder from a copy, or begin anew with another '
      '--run.directory.'
    ) from first

  def _set_aside(self, bad: list[tuple[int, Exception]], say: Callable[[str], None]) -> None:
    def move() -> None:
      place = self.directory.parent / 'damaged-checkpoints'
      for step, error in bad:
        place.mkdir(exist_ok=True)
        free = (place / f'{step}{end}' for end in ('', *(f'-{i}' for i in range(2, 10**6))))
        target = next(path for path in free if not path.exists())
        (self.directory / str(step)).rename(target)
        say(f'{error} It is kept as {target}, and the run goes on from the checkpoint before it.')

    try:
      distributed.on_first_host(move, CheckpointError)
    except OSError as e:
      raise CheckpointError(f'{bad[0][1]} It cannot be moved out of the way: {e}') from e


def _read_state(folder: Path, abstract: TrainState) -> TrainState:
  """Reads a state. If it was saved without a moving average or without clipping, it is converted to this run's structure."""
  average = (
    abstract.ema if (folder / 'ema').is_dir() or 'ema' in checkpoint.read_notes(folder).get('digests', {}) else None
  )
  unclipped = _is_unclipped(folder)
  opt = abstract.opt_state[1:] if unclipped else abstract.opt_state
  items = {'params': abstract.params, 'ema': average, 'state': {'step': abstract.step, 'opt': opt}}
  read = checkpoint.read(folder, {name: tree for name, tree in items.items() if tree is not None})
  opt = read['state']['opt']
  opt = (optax.EmptyState(), *opt) if unclipped else opt
  ema = read.get('ema')
  if abstract.ema is not None and ema is None:
    # The copy keeps the two trees' buffers apart: a step donates both.
    ema = jax.tree.map(jnp.copy, read['params'])
  return TrainState(read['state']['step'], read['params'], opt, ema)


def _is_unclipped(folder: Path) -> bool:
  """Returns whether the optimizer's state has no first part for clipping, as in runs of older versions."""
  names = checkpoint.names(folder / 'state')
  return any(n.startswith('opt/0/') for n in names) and not any(n.startswith('opt/1/') for n in names)
