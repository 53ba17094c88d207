"""The figures of the study of Markov orders, drawn from the files that it wrote; each lies beside its file."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

COLORS = ('#4c72b0', '#c44e52', '#dd8452', '#55a868', '#8172b3', '#937860', '#da8bc3', '#8c8c8c')
TITLES = {'grammar': 'Generated grammar', 'libreoffice': "LibreOffice's help, en-de"}


def orders(path: Path) -> Path:
  """Draws BLEU by order, with intervals of the difference to full history, and that difference by length."""
  contents = json.loads(path.read_text())
  corpora = list(dict.fromkeys(row['corpus'] for row in contents['rows']))
  figure = Figure(figsize=(5.2 * len(corpora), 7), layout='constrained')
  axes = figure.subplots(2, len(corpora), squeeze=False)
  for (upper, lower), name in zip(axes.T, corpora):
    of_corpus = [r for r in contents['rows'] if r['corpus'] == name and 'BLEU' in r]
    full = next(r for r in of_corpus if r['order'] == 'full')
    places = range(len(of_corpus))
    # The interval of full less k, seen from full history's BLEU.
    ends = [[full['BLEU'] - r['to'] for r in of_corpus], [full['BLEU'] - r['from'] for r in of_corpus]]
    upper.vlines(places, *ends, color=COLORS[0], linewidth=2)
    upper.plot(
      places,
      [r['BLEU'] for r in of_corpus],
      'o-',
      color=COLORS[0],
      linewidth=0.8,
      label='BLEU; interval of the difference to full',
    )
    if len(full['seeds']) > 1:
      for place, row in zip(places, of_corpus):
        upper.plot([place + 0.12] * len(row['seeds']), row['seeds'], '.', color='#999999', markersize=5, label='seeds' if not place else None)  # fmt: skip
    upper.axhline(full['BLEU'], color='#999999', linewidth=0.8, linestyle=':')
    upper.set(xlabel='Markov order', ylabel='BLEU', title=TITLES.get(name, name))
    upper.set_xticks(places, [r['order'] for r in of_corpus])
    upper.legend(loc='lower right', fontsize=8)
    by_length = [r for r in contents['quartiles'] if r['corpus'] == name and r['order'] != 'full']
    names = list(dict.fromkeys(r['order'] for r in by_length))
    words = {r['quartile']: r['words'] for r in by_length}
    for i, order in enumerate(names):
      rows = [r for r in by_length if r['order'] == order]
      x = [r['quartile'] + 0.1 * (i - (len(names) - 1) / 2) for r in rows]
      lower.plot(
        x, [r['full less k'] for r in rows], 'o-', color=COLORS[i], linewidth=0.8, markersize=4, label=_label(order)
      )
      lower.vlines(x, [r['from'] for r in rows], [r['to'] for r in rows], color=COLORS[i], linewidth=1.2)
    lower.axhline(0, color='#999999', linewidth=0.8)
    lower.set(
      xlabel='quartile of sources: words',
      ylabel='BLEU of full history less order k',
      title='What full history gains, by length',
    )
    lower.set_xticks(list(words), list(words.values()))
    lower.legend(fontsize=8, ncols=2)
    for axis in (upper, lower):
      axis.grid(alpha=0.3)
  return _saved(figure, path)


def agreement(path: Path) -> Path:
  """Draws the accuracy of agreeing words by order: one panel for each distance, and one for the clauses."""
  contents = json.loads(path.read_text())
  distances = list(dict.fromkeys(r['distance'] for r in contents['rows']))
  figure = Figure(figsize=(3 * (len(distances) + 1), 3.2), layout='constrained')
  axes = figure.subplots(1, len(distances) + 1, squeeze=False)[0]
  for axis, distance in zip(axes, distances):
    rows = [r for r in contents['rows'] if r['distance'] == distance]
    for i, mode in enumerate(dict.fromkeys(r['mode'] for r in rows)):
      points = [(r['order'], 100 * r['accuracy']) for r in rows if r['mode'] == mode]
      axis.plot(*zip(*points), ('o-', 's--', '^:', 'd-.')[i % 4], color=COLORS[i], label=mode)
    axis.axvline(distance, color='#999999', linewidth=0.8, linestyle=':')
    axis.axhline(100 * rows[0]['chance'], color='#999999', linewidth=0.8)
    axis.set(title=f'Distance {distance}', xlabel='Markov order', ylim=(0, 104))
    axis.set_xticks(sorted({r['order'] for r in rows}))
  axes[0].set_ylabel('% of agreeing words right')
  axes[0].legend(fontsize=8, loc='center right')
  last = axes[-1]
  lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
  for r in contents['clauses']:
    lines.setdefault((r['task'], r['order']), []).append((r['clauses'], 100 * r['accuracy']))
  for i, ((task, order), points) in enumerate(lines.items()):
    style = 'o-' if task == 'independent' else 's--'
    last.plot(*zip(*points), style, color=COLORS[i], markersize=4, label=f'{task}, order {order}')
  last.set(title='Clauses', xlabel='clauses in the sentence', ylim=(0, 104))
  last.legend(fontsize=7, loc='center right')
  for axis in axes:
    axis.grid(alpha=0.3)
  return _saved(figure, path)


def speed(path: Path) -> Path:
  """Draws the time of a decode step and the bytes of the state by length."""
  rows: list[dict[str, Any]] = json.loads(path.read_text())['rows']
  figure = Figure(figsize=(8.4, 3.4), layout='constrained')
  left, right = figure.subplots(1, 2)
  for i, order in enumerate(dict.fromkeys(r['order'] for r in rows)):
    of_order = [r for r in rows if r['order'] == order]
    lengths, style = [r['length'] for r in of_order], {'color': COLORS[i], 'label': _label(order)}
    middle = [r['ms a step'] for r in of_order]
    spread = [[r['ms a step'] - r['ms lowest'] for r in of_order], [r['ms highest'] - r['ms a step'] for r in of_order]]
    left.errorbar(lengths, middle, spread, marker='o', capsize=3, **style)
    right.plot(lengths, [r['state kB'] for r in of_order], 'o-', **style)
  left.set(ylabel='ms', title='A decode step (median and range)', ylim=(0, None))
  right.set(ylabel='kB', yscale='log', title='State of the decoder')
  for axis in (left, right):
    axis.set(xlabel='tokens of the translation', xscale='log')
    axis.set_xticks(sorted({r['length'] for r in rows}), sorted({r['length'] for r in rows}), minor=False)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
  return _saved(figure, path)


def _label(order: str) -> str:
  return 'full history' if order == 'full' else f'order {order}'


def _saved(figure: Figure, path: Path) -> Path:
  figure.savefig(image := path.with_suffix('.png'), dpi=120)
  return image
