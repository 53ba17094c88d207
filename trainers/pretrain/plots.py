"""Plots the attention sinks that a pretraining run measures with --eval.sinks."""

from pathlib import Path

from trainers import metrics


def plot_sinks(directory: str | Path) -> Path | None:
  """Draws Sink_1, the sink of the slot if the model has one, and the norm ratios into RUN/sinks.png; None if there are no data."""
  from matplotlib.figure import Figure

  rows = [r for r in metrics.read(directory) if r.get('valid/sink_1') is not None]
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
