"""The figure of `benchmarks.attention_sink`."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # Not pyplot: no global state, no display.
import numpy as np


def draw(rows: list[dict[str, Any]], curves: list[dict[str, Any]], path: Path) -> Path:
  """Draws retrieval as bars, sinks beside error, with the seeds as dots; and the language models' sinks by step."""
  retrieval = [r for r in rows if r['study'] == 'retrieval']
  names = list(dict.fromkeys(r['row'] for r in retrieval))
  panels = [h for h, there in ((1.2 + 0.4 * len(names), retrieval), (3.4, curves)) if there]
  figure = Figure(figsize=(10, sum(panels)), layout='constrained')
  axes = figure.subplots(len(panels), 2, squeeze=False, gridspec_kw={'height_ratios': panels})
  blue, red = '#4c72b0', '#c44e52'
  if retrieval:
    left, right = axes[0]
    for y, name in enumerate(names):
      of_row = [r for r in retrieval if r['row'] == name]
      for key, color, up in (('Sink_1', blue, 0.19), ('Sink_*', red, -0.19)):
        values = [100 * r[key] for r in of_row if r[key] is not None]
        if values:
          left.barh(y - up, np.mean(values), 0.34, color=color, alpha=0.6, label=key if name == names[-1] else None)
          left.plot(values, [y - up] * len(values), 'o', color=color, markersize=4, clip_on=False, zorder=3)
      right.plot([r['loss'] for r in of_row], [y] * len(of_row), 'o', color='#555555', markersize=4)
    left.set(
      xlabel='% of heads and sequences over 0.3', xlim=(0, 100), title='Gated retrieval: sink (proxy), seeds as dots'
    )
    right.set(xlabel='mean squared error, held out', xscale='log', title='... and how well the task is solved')
    left.set_yticks(range(len(names)), names)
    right.set_yticks(range(len(names)), [''] * len(names))
    left.legend(loc='upper center', bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    for ax in (left, right):
      ax.set_ylim(len(names) - 0.4, -0.6)
      ax.grid(alpha=0.3, axis='x')
  if curves:
    left, right = axes[-1]
    colors = {row: f'C{i}' for i, row in enumerate(dict.fromkeys(c['row'] for c in curves))}
    for c in curves:
      style, label = (
        {'color': colors[c['row']], 'linewidth': 1.2, 'marker': 'o', 'markersize': 3},
        c['row'] if not c['seed'] else None,
      )
      left.plot(c['step'], [100 * v for v in c['Sink_1']], **style, label=label)
      if c['Sink_*'][0] is not None:
        left.plot(c['step'], [100 * v for v in c['Sink_*']], **style, linestyle='--')
      right.plot(c['step'], c['loss'], **style, label=label)
    left.set(xlabel='step', ylabel='%', ylim=(-3, 103), title='Language model: Sink_1 (proxy), Sink_* dashed')
    right.set(xlabel='step', ylabel='nats per token', title='Language model: held-out loss')
    right.legend(loc='upper center', bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    for ax in (left, right):
      ax.grid(alpha=0.3)
  figure.savefig(path, dpi=120)
  return path
