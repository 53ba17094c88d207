"""Plots the loss of a run."""

from pathlib import Path

from trainers import metrics


def plot_losses(
  directory: str | Path, path: str | Path | None = None, *, label: str = 'loss (nats per token)'
) -> Path | None:
  """Draws the training and validation loss of a run into RUN/loss.png; returns the path, or None if there are no data.

  label: label of the loss axis.
  """
  from matplotlib.figure import Figure  # Unlike pyplot, this needs no display and has no global state.

  rows = metrics.read(directory)
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
  axes.set(xlabel='step', ylabel=label, title=Path(directory).resolve().name)
  axes.grid(alpha=0.3)
  axes.legend()
  path = Path(path or Path(directory) / 'loss.png')
  figure.savefig(path, dpi=120)
  return path
