"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases, the terminal, and a loss curve."""

from collections.abc import Callable
import functools
import itertools
import json
import math
from pathlib import Path
import shutil
import sys
import time
from typing import Any

from jaxlm import console
from jaxlm.errors import CheckpointError
from jaxlm.io.atomic import write_atomically
from trainers import side
from trainers.config import ConfigError, RunConfig

TIMING = ('seconds', 'tokens_per_second')
"""Fields that differ between a run and its repetition; all others are equal bit for bit."""


def read(directory: str | Path) -> list[dict[str, Any]]:
  """Returns the objects of a run's metrics.jsonl; lines that are none of a run's, or that a kill cut short, are left out."""
  return [row for row, _ in _parse(Path(directory) / 'metrics.jsonl')[0]]


def _parse(path: Path) -> tuple[list[tuple[dict[str, Any], str]], list[int]]:
  """Returns (object, its line) of a file of metrics, and the numbers of the lines that are no object with a step.

  What follows the last line end is the half line that a killed process leaves: it is in neither.
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


def evaluated(directory: str | Path, step: int) -> bool:
  """Whether a run has logged an evaluation of this step."""
  return any(row['step'] == step and any(name.startswith('valid/') for name in row) for row in read(directory))


def forget_after(path: Path, step: int, say: Callable[[str], None]) -> None:
  """Rewrites a file of metrics without what was logged after `step`, in full or not at all.

  Lines that no run wrote are left out as well; then the whole file is kept under another name, which is said.
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
  """Lines appended to a file, each at once. Lines that a full disk does not take are kept and written later."""

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
        self._say(f'{self.path} cannot be written: {e}. Training goes on; its lines are written once that is possible.')
      self._told = True

  def close(self) -> None:
    self._flush()
    if lost := self._pending.count(b'\n'):
      self._say(f'{self.path}: the last {lost} lines could not be written.')
    self._file.close()


class MetricLog:
  """Writes metrics of process 0. Opening it at `step` forgets what a stopped run logged after that step.

  Only metrics.jsonl is part of the run; TensorBoard and Weights & Biases are left out when they fail.

  Raises:
    CheckpointError: metrics.jsonl cannot be read or written.
    ConfigError: Weights & Biases are asked for and not installed.
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
    # JSON has no NaN; None keeps the line readable everywhere.
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


class Progress:
  """A bar on a terminal; elsewhere a line now and then. `say` prints without tearing the bar.

  A terminal or pipe that goes away is no reason to stop: what would be shown on it is dropped.
  """

  def __init__(self, start: int, total: int, *, show: bool, every_seconds: float = 5.0):
    self.total, self.done, self.show, self.every_seconds = total, start, show, every_seconds
    self._started, self._start, self._last = time.monotonic(), start, -math.inf
    self._bar = None
    if show and sys.stderr is not None and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(total=total, initial=start, unit='step', dynamic_ncols=True)

  def begin(self, step: int) -> None:
    """Starts to count at `step`."""
    self.done = self._start = step
    if self._bar is not None:
      self._bar.initial = self._bar.n = self._bar.last_print_n = step

  def update(self, step: int, loss: float, tokens_per_second: float) -> None:
    advanced, self.done = step - self.done, step
    if self._bar is not None:
      try:
        self._bar.set_postfix_str(f'loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s', refresh=False)
        self._bar.update(advanced)
      except (OSError, ValueError) as e:
        self._drop_bar(e)
    elif self.show and (time.monotonic() - self._last > self.every_seconds or step == self.total):
      self._last = time.monotonic()
      left = (self._last - self._started) / max(1, step - self._start) * (self.total - step)
      self.say(f'step {step}/{self.total}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {left:.0f} s left')

  def say(self, text: str) -> None:
    if not self.show:
      return
    try:
      if self._bar is not None:
        self._bar.write(text)
      else:
        print(text, flush=True)
    except UnicodeEncodeError as e:
      self.say(text.encode(e.encoding, 'backslashreplace').decode(e.encoding))
    except (OSError, ValueError) as e:
      self.show = False
      console.silence(sys.stdout)
      _last_word(f'Standard output is gone ({e}): the run goes on without it.')

  def close(self) -> None:
    try:
      if self._bar is not None:
        self._bar.close()
    except (OSError, ValueError) as e:
      self._drop_bar(e)

  def _drop_bar(self, error: Exception) -> None:
    if self._bar is not None:
      self._bar.disable, self._bar = True, None
    console.silence(sys.stderr)
    self.say(f'The progress bar is gone ({error}): the run goes on without it.')


def _last_word(text: str) -> None:
  try:
    print(text, file=sys.stderr, flush=True)
  except (OSError, ValueError):
    console.silence(sys.stderr)


def plot_losses(directory: str | Path, path: str | Path | None = None) -> Path | None:
  """Draws the training and validation loss of a run into RUN/loss.png; returns its path, or None without any data."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

  rows = [r for r in read(directory)]
  train = [(r['step'], r['loss']) for r in rows if r.get('loss') is not None]
  valid = [(r['step'], r['valid/loss']) for r in rows if r.get('valid/loss') is not None]
  if not train and not valid:
    return None
  figure = Figure(figsize=(7, 4.2), layout='constrained')
  axes = figure.subplots()
  if train:
    axes.plot(*zip(*train), color='#4c72b0', linewidth=1.2, label='train (single steps)')
  if valid:
    axes.plot(*zip(*valid), color='#c44e52', marker='o', markersize=3, linewidth=1.2, label='validation')
  axes.set(xlabel='step', ylabel='loss (nats per token)', title=Path(directory).resolve().name)
  axes.grid(alpha=0.3)
  axes.legend()
  path = Path(path or Path(directory) / 'loss.png')
  figure.savefig(path, dpi=120)
  return path


def plot_sinks(directory: str | Path) -> Path | None:
  """Draws Sink_1, that of the slot if there is one, and the norm ratios of a run into RUN/sinks.png, or nothing."""
  from matplotlib.figure import Figure

  rows = [r for r in read(directory) if r.get('valid/sink_1') is not None]
  if not rows:
    return None
  steps = [r['step'] for r in rows]
  figure = Figure(figsize=(10, 4), layout='constrained')
  left, right = figure.subplots(1, 2)
  for name, label, color in (('sink_1', 'first token', '#4c72b0'), ('sink_slot', 'sink slot', '#c44e52')):
    if f'valid/{name}' in rows[0]:
      left.plot(steps, [100 * r[f'valid/{name}'] for r in rows], color=color, marker='o', markersize=3, label=label)
  left.set(xlabel='step', ylabel='Sink (% of heads, eps 0.3)', ylim=(-3, 103))
  left.legend()
  layers = range(sum(k.startswith('valid/hidden_ratio_layer_') for k in rows[-1]))
  right.plot(
    layers, [rows[-1][f'valid/hidden_ratio_layer_{i}'] for i in layers], color='#55a868', marker='o', markersize=3
  )
  right.set(xlabel='layer', ylabel='hidden norm, first token / others', title=f'step {steps[-1]}', ylim=(0, None))
  right.xaxis.get_major_locator().set_params(integer=True)
  for axes in (left, right):
    axes.grid(alpha=0.3)
  path = Path(directory) / 'sinks.png'
  figure.savefig(path, dpi=120)
  return path
