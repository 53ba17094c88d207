"""The checkpoints of a run: what is saved, and what a run goes on from.

A run goes on from its newest checkpoint that is whole. One that is damaged is named and moved to RUN/damaged-checkpoints, and
the one before it is used: training again what is lost costs time, and a damaged number costs the run.
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
  """What a checkpoint says beside its arrays; the defaults are those of checkpoints that are older than a field."""

  tokens: float = 0.0
  """Targets trained on so far."""
  seed: int = 0
  evaluation_due: bool = False
  """A signal came during the evaluation of this step, which is still to be made."""
  learning_rate: float | None = None
  """Learning rate of the next step."""
  best: dict[str, Any] = dataclasses.field(default_factory=dict)
  """The best evaluation so far, and how many came after it: a trainers.best.Best as a dictionary."""
  data: dict[str, Any] = dataclasses.field(default_factory=dict)
  """What the task says of its data, and how far it has been read."""

  @classmethod
  def read(cls, folder: Path) -> 'Notes':
    """Raises CheckpointError, naming the file and the field, if the notes are not those of a run."""
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
          f'{folder / checkpoint.NOTES / "metadata"}: {name}={value!r} is not what a run notes there.'
        )
      kept[name] = value
    return cls(**kept)


class RunCheckpoints:
  """Saves states of a run and restores the newest good one. Every process calls every method."""

  def __init__(self, directory: Path, *, keep: int, keep_also: Callable[[Sequence[int]], Collection[int]]):
    self.directory, self._keep, self._keep_also = directory, keep, keep_also
    self._saver: checkpoint.Checkpointer | None = None

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
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
    """Returns (step, state, notes) of the newest checkpoint that is whole.

    Raises:
      CheckpointError: of the newest one, if none can be used.
    """
    first, bad = None, []
    for step in reversed(checkpoint.steps(self.directory)):
      folder, error, found = self.directory / str(step), None, None
      try:
        found = Notes.read(folder), _read_state(folder, abstract)
      except CheckpointError as e:
        error = e
      # A host whose part is whole must not go on from a step that another host cannot read.
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
  """Reads a state; one that was saved without a moving average, or without clipping, becomes one of this run's kind."""
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
  """Whether the optimizer's state is that of a chain without a first link for clipping, as runs once had it."""
  names = checkpoint.names(folder / 'state')
  return any(n.startswith('opt/0/') for n in names) and not any(n.startswith('opt/1/') for n in names)
