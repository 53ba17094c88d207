"""The figures of the study of order-agnostic losses, drawn from the files that it wrote; each lies beside its file."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

from benchmarks.translation_mat_figures import COLORS

LABELS = {
  'valid': '% of translations valid', 'repeated': '% of tokens repeated', 'intact phrases': '% of phrases intact', 'BLEU': 'BLEU',
}  # fmt: skip


def grammar(path: Path) -> Path:
  """Draws each measure by loss: the mean over seeds, the seeds, and perfect cross-entropy as a line."""
  rows = json.loads(path.read_text())['rows']
  by_name = {row['model']: row for row in rows}
  perfect = by_name.pop('perfect CE')
  del by_name['references']
  figure = Figure(figsize=(11, 6.4), layout='constrained')
  for axis, (measure, label) in zip(figure.subplots(2, 2).flat, LABELS.items()):
    _bars(axis, list(by_name.values()), measure)
    axis.axhline(perfect[measure], color=COLORS[1], linewidth=1, linestyle='--', label='perfect cross-entropy')
    axis.set(ylabel=label)
    axis.legend(fontsize=8)
  return _saved(figure, path)


def _bars(axis: Any, rows: list[dict[str, Any]], measure: str) -> None:
  places = range(len(rows))
  axis.bar(
    places, [row[measure] for row in rows], color=[COLORS[i % len(COLORS)] for i in places], width=0.7, alpha=0.8
  )
  for place, row in zip(places, rows):
    seeds = row[f'{measure}, seeds']
    axis.plot([place] * len(seeds), seeds, 'k.', markersize=5)
    axis.annotate(f'{row[measure]:.1f}', (place, max(row[measure], *seeds)), ha='center', va='bottom', fontsize=8)
  axis.set_xticks(list(places), [row['model'].replace('OaXE, ', 'OaXE,\n') for row in rows], fontsize=8)
  axis.margins(y=0.15)
  axis.grid(alpha=0.3, axis='y')


def libreoffice(path: Path) -> Path:
  """Draws BLEU and repetitions of each model, and the speed of decoding relative to the teacher."""
  contents = json.loads(path.read_text())
  rows = [row for row in contents['rows'] if row['model'] != 'references']
  figure = Figure(figsize=(13, 3.8), layout='constrained')
  left, middle, right = figure.subplots(1, 3)
  for axis, measure in ((left, 'BLEU'), (middle, 'repeated')):
    _bars(axis, [row | {'model': row['model'].replace(', ', ',\n')} for row in rows], measure)
    axis.set(ylabel=LABELS[measure])
  batches = list(dict.fromkeys(row['batch'] for row in contents['speed']))
  decoders = list(dict.fromkeys(row['decoder'] for row in contents['speed']))
  for i, decoder in enumerate(decoders):
    some = [row for row in contents['speed'] if row['decoder'] == decoder]
    x = [batches.index(row['batch']) + 0.25 * (i - (len(decoders) - 1) / 2) for row in some]
    y = [row['speed, teacher = 1'] for row in some]
    spread = [[v - row['lowest'] for v, row in zip(y, some)], [row['highest'] - v for v, row in zip(y, some)]]
    right.bar(x, y, width=0.23, yerr=spread, capsize=3, color=COLORS[i], alpha=0.8, label=decoder)
  right.set_xticks(range(len(batches)), [f'batch {batch}' for batch in batches])
  right.set(ylabel='speed, teacher = 1')
  right.legend(fontsize=8)
  right.grid(alpha=0.3, axis='y')
  return _saved(figure, path)


def _saved(figure: Figure, path: Path) -> Path:
  figure.savefig(image := path.with_suffix('.png'), dpi=120)
  return image
