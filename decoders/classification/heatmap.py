"""Heat maps of contributions: words against labels, as HTML or as a picture."""

from collections.abc import Sequence
import html as html_lib
from pathlib import Path

import numpy as np

from decoders.classification.output import Classifications, ColumnResult, Contributions

FOR, AGAINST = (46, 125, 50), (198, 40, 40)
"""Colours of words that speak for a label and against it."""
STYLE = (
  'body{font-family:sans-serif;max-width:60em;margin:2em auto;line-height:1.7}'
  'table{border-collapse:collapse}td{padding:.2em .6em;vertical-align:top}span{padding:.1em .15em;border-radius:.2em}'
)


def html(out: Classifications, texts: Sequence[str]) -> str:
  """Returns an HTML page with the words of each text, coloured by what they add to the logits of its likeliest labels.

  Args:
    out: result of `decoders.classify` with explain=True.
    texts: the texts that were classified.

  Raises:
    ValueError: the result has no contributions.
  """
  parts = [f'<!doctype html><meta charset="utf-8"><title>Contributions of words</title><style>{STYLE}</style>']
  for i, text in enumerate(texts):
    parts.append(f'<h2>{html_lib.escape(text[:80])}{"..." if len(text) > 80 else ""}</h2>')
    for column in out.columns.values():
      found = _of(column, i)
      parts.append(f'<h3>{html_lib.escape(column.name)}</h3><table>')
      largest = float(np.abs(found.scores).max()) or 1.0
      for row, label in enumerate(found.labels):
        spans = ' '.join(
          f'<span style="background:{_colour(score / largest)}" title="{score:+.3f}">{html_lib.escape(word)}</span>'
          for word, score in zip(found.words, found.scores[row])
        )
        said = f'<b>{html_lib.escape(label)}</b><br>{column.probabilities[i, row]:.1%}<br>rest {found.rest[row]:+.2f}'
        parts.append(f'<tr><td>{said}</td><td>{spans}</td></tr>')
      parts.append('</table>')
  return '\n'.join(parts) + '\n'


def picture(out: Classifications, path: str | Path) -> None:
  """Writes a picture of the contributions of each text and column, in the format of the path's suffix, such as .png or .svg.

  Raises:
    ValueError: the result has no contributions.
  """
  import matplotlib

  matplotlib.use('Agg')
  import matplotlib.pyplot as plt

  found = [(column, i) for i in range(len(out.labels)) for column in out.columns.values()]
  words = max(len(_of(column, i).words) for column, i in found)
  height = sum(len(column.labels[0]) for column, _ in found)
  figure, axes = plt.subplots(
    len(found), 1, figsize=(2.5 + 0.35 * words, 0.4 * height + 1.6 * len(found)), squeeze=False, layout='constrained'
  )
  for axis, (column, i) in zip(axes[:, 0], found):
    one = _of(column, i)
    largest = float(np.abs(one.scores).max()) or 1.0
    image = axis.imshow(one.scores, cmap='RdYlGn', vmin=-largest, vmax=largest, aspect='auto')
    # A dollar sign would begin a formula.
    axis.set_xticks(range(len(one.words)), [word.replace('$', r'\$') for word in one.words], rotation=90)
    names = [f'{label} {p:.0%}' for label, p in zip(one.labels, column.probabilities[i])]
    axis.set_yticks(range(len(names)), [name.replace('$', r'\$') for name in names])
    axis.set_title(f'{column.name}: what each word adds to the logit', fontsize=9)
    figure.colorbar(image, ax=axis)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _of(column: ColumnResult, text: int) -> Contributions:
  if column.contributions is None:
    raise ValueError('The result has no contributions: call decoders.classify with explain=True.')
  return column.contributions[text]


def _colour(share: float) -> str:
  r, g, b = FOR if share > 0 else AGAINST
  return f'rgba({r},{g},{b},{min(1.0, abs(share)):.3f})'
