"""Report on S: its distribution, its correlations with simple features, and texts with the lowest and the highest S.

If S only said "not a list", "long" or "easy", a simple rule could replace it; the correlations show whether that is so.
"""

from __future__ import annotations

from collections.abc import Sequence
import re
from typing import TYPE_CHECKING

import numpy as np

from jaxlm.analysis.direction.files import Scores
from jaxlm.analysis.statistics import rank_correlation

if TYPE_CHECKING:
  from jaxtyping import Float, Int

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
WORDS = 256
_MARKED = re.compile(r'\s*([-*+•·#|>~=]|\(?\d{1,3}[.):]|</?[A-Za-z!]|[{}\[\]]|&\w+;|\.\. )')


def type_token_ratio(text: str) -> float:
  """Returns the share of distinct words among the first 256; over a whole text, it would mostly measure length."""
  words = re.findall(r'\w+', text.lower())[:WORDS]
  return len(set(words)) / max(len(words), 1)


def list_share(text: str) -> float:
  """Returns the share of lines that look like list items, table rows, headings, tags or quotations."""
  lines = [line for line in text.splitlines() if line.strip()]
  return sum(bool(_MARKED.match(line)) for line in lines) / max(len(lines), 1)


def repeated_line_share(text: str) -> float:
  """Returns the share of lines that repeat an earlier line."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return 1 - len(set(lines)) / max(len(lines), 1)


FEATURES = {
  'type/token ratio': type_token_ratio,
  'list and markup lines': list_share,
  'repeated lines': repeated_line_share,
}


def distribution(scores: Scores, rows: Int[np.ndarray, ' R'], most: int = 20) -> list[list[str]]:
  """Returns a table of S and the losses: a header, a line for each of the largest domains, and a line for all documents."""
  lines = [
    ['domain', 'documents', 'tokens', 'L forward', 'L reverse', 'S mean', 'std', *(f'{q:.0%}' for q in QUANTILES)]
  ]
  domain = scores.domain[rows]
  size = np.bincount(domain, scores.tokens[rows], minlength=len(scores.domains))
  present = [i for i in np.argsort(-size, kind='stable') if size[i]]
  groups = [(scores.domains[i] or '(unknown)', rows[domain == i]) for i in present[:most]]
  for name, group in [*groups, ('all', rows)] if len(present) > 1 else [('all', rows)]:
    S = scores.S[group]
    means = (scores.loss_forward[group].mean(), scores.loss_reverse[group].mean(), S.mean(), S.std())
    numbers = [*means, *np.quantile(S, QUANTILES)]
    lines.append(
      [_last(name, 32), f'{len(group):,}', f'{scores.tokens[group].sum():,}', *(f'{x:.4f}' for x in numbers)]
    )
  return lines


def correlations(
  scores: Scores, rows: Int[np.ndarray, ' R'], features: dict[str, Float[np.ndarray, ' R']]
) -> dict[str, float]:
  """Returns Spearman's correlation of S with the forward loss, the length and each feature; NaN for a constant one."""
  values = {'forward loss': scores.loss_forward[rows], 'tokens': scores.tokens[rows], **features}
  return {name: rank_correlation(scores.S[rows], x) for name, x in values.items()}


def extremes(S: Float[np.ndarray, ' R'], number: int) -> dict[str, np.ndarray]:
  """Returns the indices of the lowest S, of S around the median, and of the highest S, without repetition."""
  order = np.argsort(S, kind='stable')
  number = min(number, len(order) // 3) or min(1, len(order))
  start = (len(order) - number) // 2
  return {
    'easiest forward': order[:number],
    'middle': order[start : start + number],
    'easiest in reverse': order[::-1][:number],
  }


def sample(rows: Int[np.ndarray, ' R'], number: int, seed: int) -> Int[np.ndarray, ' n']:
  """Returns `number` random rows, sorted."""
  if len(rows) <= number:
    return rows
  return np.sort(np.random.default_rng(seed).choice(rows, number, replace=False))


def shortened(text: str, characters: int) -> str:
  """Returns the beginning of a text on one line."""
  text = ' '.join(text.split())
  return text if len(text) <= characters else text[: characters - 3] + '...'


def example_lines(scores: Scores, rows: Sequence[int], texts: dict[int, str], characters: int) -> list[str]:
  """Returns, for each row, one line with its numbers and one line with its text."""
  lines = []
  for row in rows:
    text = texts[row]
    numbers = '  '.join(f'{name} {f(text):.2f}' for name, f in FEATURES.items())
    domain = scores.domains[scores.domain[row]]
    lines.append(
      f'S {scores.S[row]:+.4f}  forward {scores.loss_forward[row]:.3f}  tokens {scores.tokens[row]}  {numbers}  '
      f'#{scores.id[row]}{" " + domain if domain else ""}\n    {shortened(text, characters)}'
    )
  return lines


def _last(name: str, characters: int) -> str:
  return name if len(name) <= characters else '...' + name[3 - characters :]
