"""Logs a run's metrics to metrics.jsonl, TensorBoard and Weights & Biases, and reads metrics.jsonl."""

from collections.abc import Callable
import functools
import itertools
import json
import math
from pathlib import Path
import shutil
from typing import Any

from jaxlm.errors import CheckpointError
from jaxlm.io.atomic import write_atomically
from trainers import side
from trainers.config import ConfigError, RunConfig


def is_timing(name: str) -> bool:
  """Returns whether a field measures time. Only these fields differ when a run is repeated; all others are equal bit for bit."""
  return name == 'seconds' or name.endswith('_per_second')


def read(directory: str | Path) -> list[dict[str, Any]]:
  """Returns the objects of a run's metrics.jsonl, without foreign lines and without a last line that is not complete."""
  return [row for row, _ in _parse(Path(directory) / 'metrics.jsonl')[0]]


def _parse(path: Path) -> tuple[list[tuple[dict[str, Any], str]], list[int]]:
  """Returns ([(object, its line)] of a file of metrics, the numbers of foreign lines, which are not objects with a step).

  Text after the last line end is ignored: it is part of a line that a killed process did not finish.
  """
  rows, foreign = [], []
  data = path.read_bytes() if path.exists() else b''
  for number, line in enumerate(data[: data.rfind(b'\n') + 1].splitlines(), 1):
    try:
      text = line.decode()
      row = json.loads(text)
    except (ValueError, RecursionError):
      row = None
    if isinstance(row, dict) and type(row.get('step')) is int:
      rows.append((row, text))
    elif line.strip():
      foreign.append(number)
  return rows, foreign


def evaluated(directory: str | Path, step: int, prefix: str = 'valid') -> bool:
  """Returns whether a run has logged an evaluation of this step. prefix: 'valid', or 'average' for the averaged checkpoints."""
  return any(row['step'] == step and any(name.startswith(f'{prefix}/') for name in row) for row in read(directory))


def forget_after(path: Path, step: int, say: Callable[[str], None]) -> None:
  """Removes all rows after `step` from a file of metrics, atomically.

  Lines that no run wrote are removed too; then a copy of the whole file is kept, and `say` names it.
  """
  rows, foreign = _parse(path)
  if foreign:
    copy = next(c for i in itertools.count(1) if not (c := path.with_name(f'{path.name}.foreign-{i}')).exists())
    shutil.copyfile(path, copy)
    say(
      f'{path}: {len(foreign)} lines are not metrics of a run, the first is line {foreign[0]}. They are left out; '
      f'{copy} keeps them.'
    )
  text = ''.join(line + '\n' for row, line in rows if row['step'] <= step)
  if path.exists() and path.read_bytes() != text.encode():
    write_atomically(path, text)


class MetricFile:
  """A file to which each line is written at once. Lines that cannot be written, on a full disk, are kept and written later."""

  def __init__(self, path: Path, say: Callable[[str], None]):
    self.path, self._say, self._pending, self._told = path, say, b'', False
    self._file = open(path, 'ab', buffering=0)

  def write(self, line: str) -> None:
    self._pending += line.encode() + b'\n'
    self._flush()

  def _flush(self) -> None:
    try:
      while self._pending:
        self._pending = self._pending[self._file.write(self._pending) :]
      self._told = False
    except OSError as e:
      if not self._told:
        self._say(
          f'{self.path} cannot be written: {e}. Training continues, and the lines are written later if possible.'
        )
      self._told = True

  def close(self) -> None:
    self._flush()
    if lost := self._pending.count(b'\n'):
      self._say(f'{self.path}: the last {lost} lines could not be written.')
    self._file.close()


class MetricLog:
  """Writes the metrics of process 0. Rows after `step`, which a stopped run has logged, are removed first.

  If TensorBoard or Weights & Biases fail, the run continues without them; metrics.jsonl is always written.

  Raises:
    CheckpointError: metrics.jsonl cannot be read or written.
    ConfigError: Weights & Biases is asked for but not installed.
  """

  def __init__(
    self,
    directory: str | Path,
    config: RunConfig,
    *,
    step: int,
    settings: dict[str, Any],
    write: bool,
    say: Callable[[str], None] = print,
  ):
    directory, self._file, self._sides = Path(directory), None, []
    if not write:
      return
    if config.wandb:
      try:
        import wandb  # noqa: F401
      except ImportError:
        raise ConfigError('--run.wandb needs Weights & Biases: pip install "jaxlm[wandb]".') from None
    path = directory / 'metrics.jsonl'
    try:
      forget_after(path, step, say)
      self._file = MetricFile(path, say)
    except OSError as e:
      raise CheckpointError(f'{path} cannot be read or written: {e}') from e
    if config.tensorboard:
      events = functools.partial(side.TensorBoard, directory / 'tensorboard', step)
      self._sides.append(side.Side('TensorBoard', events, say))
    if config.wandb:
      service = functools.partial(side.WeightsAndBiases, directory, config.wandb, settings)
      self._sides.append(side.Side('Weights & Biases', service, say))

  def write(self, step: int, values: dict[str, float]) -> None:
    if self._file is None:
      return
    # JSON has no NaN, so null is written instead.
    row = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
    self._file.write(json.dumps({'step': step, **row}))
    for one in self._sides:
      one.write(step, values)

  def close(self, patience: float = side.PATIENCE) -> None:
    """Finishes the files; TensorBoard and Weights & Biases get at most `patience` seconds each."""
    if self._file is not None:
      self._file.close()
    for one in self._sides:
      one.close(patience)
