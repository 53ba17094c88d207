"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases, the terminal, and a loss curve."""

import json
import math
from pathlib import Path
import sys
import time
from typing import Any

from trainers.config import ConfigError, RunConfig

TIMING = ('seconds', 'tokens_per_second')
"""Fields that differ between a run and its repetition; all others are equal bit for bit."""


def read(directory: str | Path) -> list[dict[str, Any]]:
  """Returns the objects of a run's metrics.jsonl; a line cut short by a kill ends the file."""
  path, rows = Path(directory) / 'metrics.jsonl', []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


class MetricLog:
  """Writes metrics of process 0. Opening it at `step` forgets what a stopped run logged after that step."""

  def __init__(self, directory: str | Path, config: RunConfig, *, step: int, settings: dict[str, Any], write: bool):
    self.directory = Path(directory)
    self._file = self._tensorboard = self._wandb = None
    if not write:
      return
    kept = [row for row in read(directory) if row['step'] <= step]
    self._file = open(self.directory / 'metrics.jsonl', 'w')
    for row in kept:
      self._file.write(json.dumps(row) + '\n')
    self._file.flush()
    if config.tensorboard:
      from tensorboardX import SummaryWriter

      # TensorBoard itself drops events after purge_step when a resumed run writes them again.
      self._tensorboard = SummaryWriter(str(self.directory / 'tensorboard'), purge_step=step + 1 if step else None)
    if config.wandb:
      try:
        import wandb
      except ImportError:
        raise ConfigError('--run.wandb needs Weights & Biases: pip install "jaxlm[wandb]".') from None
      name = self.directory.resolve().name
      self._wandb = wandb.init(project=config.wandb, name=name, id=name, resume='allow', config=settings)

  def write(self, step: int, values: dict[str, float]) -> None:
    if self._file is None:
      return
    # JSON has no NaN; None keeps the line readable everywhere.
    row = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
    self._file.write(json.dumps({'step': step, **row}) + '\n')
    self._file.flush()
    if self._tensorboard is not None:
      for name, value in values.items():
        self._tensorboard.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log(values, step=step)

  def close(self) -> None:
    for sink in (self._file, self._tensorboard):
      if sink is not None:
        sink.close()
    if self._wandb is not None:
      self._wandb.finish()


class Progress:
  """A bar on a terminal; elsewhere a line now and then. `say` prints without tearing the bar."""

  def __init__(self, start: int, total: int, *, show: bool, every_seconds: float = 5.0):
    self.total, self.done, self.show, self.every_seconds = total, start, show, every_seconds
    self._started, self._start, self._last = time.monotonic(), start, -math.inf
    self._bar = None
    if show and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(total=total, initial=start, unit='step', dynamic_ncols=True)

  def update(self, step: int, loss: float, tokens_per_second: float) -> None:
    advanced, self.done = step - self.done, step
    if self._bar is not None:
      self._bar.set_postfix_str(f'loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s', refresh=False)
      self._bar.update(advanced)
    elif self.show and (time.monotonic() - self._last > self.every_seconds or step == self.total):
      self._last = time.monotonic()
      left = (self._last - self._started) / max(1, step - self._start) * (self.total - step)
      self.say(f'step {step}/{self.total}  loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {left:.0f} s left')

  def say(self, text: str) -> None:
    if not self.show:
      return
    if self._bar is not None:
      self._bar.write(text)
    else:
      print(text, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


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
