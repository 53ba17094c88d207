"""What translations by models of several Markov orders say: BLEU, its difference to full history with intervals, by length.

The items of the bootstrap are test sentences, the same for both models and all seeds. Seeds are averaged, so an interval covers the
choice of sentences and not the choice of seeds, whose values are listed beside it. A difference is that of full history less order k:
above zero, full history is better. Full history is an ordinary decoder, in which keys and values are made of hidden states. So the
largest order is a second reference: it differs from order k in the window alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.translation_mat_models import named
from jaxlm.evaluation.bleu import COLUMNS, bleu, counts
from jaxlm.evaluation.bootstrap import Difference, paired_statistic

QUARTILES = 4
CENTRED = np.arange(QUARTILES) - (QUARTILES - 1) / 2
PAR = 0.3
"""BLEU by which an order may be worse than full history and still be on par with it, whatever its interval."""

Translations = dict[int, list[list[str]]]
"""Order -> the translations of the test sentences, of each seed."""


def repeated_bigrams(texts: Sequence[str]) -> float:
  """Returns the share of bigrams that occurred before in the same text: a model that loops repeats them."""
  repeated = total = 0
  for text in texts:
    words = text.split()
    bigrams = list(zip(words, words[1:]))
    total += len(bigrams)
    repeated += len(bigrams) - len(set(bigrams))
  return repeated / max(total, 1)


def quartiles(sources: Sequence[str]) -> np.ndarray:
  """Returns the quartile of each source by its words, 0 for the shortest. Sources of one length are in one quartile."""
  words = np.array([len(source.split()) for source in sources])
  return np.searchsorted(np.quantile(words, (0.25, 0.5, 0.75)), words, side='left')


def mean_bleu(sums: np.ndarray) -> np.ndarray:
  """Returns BLEU, mean over seeds, of sums [..., seeds * 10]."""
  return bleu(sums.reshape(*sums.shape[:-1], -1, COLUMNS)).mean(axis=-1)


def slope(sums: np.ndarray) -> np.ndarray:
  """Returns the least-squares slope of BLEU by quartile, of sums [..., 4 * seeds * 10]."""
  by_quartile = mean_bleu(sums.reshape(*sums.shape[:-1], QUARTILES, -1))
  return by_quartile @ CENTRED / (CENTRED @ CENTRED)


def scored(
  name: str, pairs: Sequence[tuple[str, str]], found: Translations, is_valid: Callable[[str, str], bool] | None
) -> dict[str, list[dict[str, Any]]]:
  """Returns the tables 'orders', 'quartiles' and 'slopes' of one corpus. `found` must have order 0, full history."""
  sources, references = zip(*pairs)
  quartile = quartiles(sources)
  # [n, seeds * 10]
  sums = {
    order: np.concatenate([counts(texts, references) for texts in seeds], axis=1) for order, seeds in found.items()
  }
  orders, by_length, slopes, largest = [], [], [], max(found)
  for order, seeds in sorted(found.items(), key=lambda item: item[0] or np.inf):
    difference = paired_statistic(sums[0], sums[order], mean_bleu)
    total = sums[order].sum(axis=0).reshape(-1, COLUMNS)
    row = {
      'corpus': name, 'order': named(order), 'BLEU': float(bleu(total).mean()), 'seeds': [round(float(b), 2) for b in bleu(total)],
      **compared(difference), 'repeated bigrams': float(np.mean([repeated_bigrams(texts) for texts in seeds])),
      'length ratio': float((total[:, 8] / total[:, 9]).mean()),
    }  # fmt: skip
    if 0 < order < largest:
      row |= compared(paired_statistic(sums[largest], sums[order], mean_bleu), f'{largest} less k', f'{largest} ')
    if is_valid is not None:
      row['valid'] = float(np.mean([[is_valid(s, t) for s, t in zip(sources, texts)] for texts in seeds]))
    orders.append(row)
    for q in range(QUARTILES):
      some = quartile == q
      words = [len(source.split()) for source, chosen in zip(sources, some) if chosen]
      if words:
        by_length.append({
          'corpus': name, 'order': named(order), 'quartile': q + 1, 'words': f'{min(words)}-{max(words)}',
          'sentences': len(words), 'BLEU': float(mean_bleu(sums[order][some].sum(axis=0))),
          **compared(paired_statistic(sums[0][some], sums[order][some], mean_bleu)),
        })  # fmt: skip
    if order:
      spread = [_by_quartile(sums[o], quartile) for o in (0, order)]
      slopes.append(
        {'corpus': name, 'order': named(order), **compared(paired_statistic(*spread, slope), 'BLEU a quartile')}
      )
  references_row = {'corpus': name, 'order': 'references', 'repeated bigrams': repeated_bigrams(references)}
  return {'orders': [*orders, references_row], 'quartiles': by_length, 'slopes': slopes}


def _by_quartile(sums: np.ndarray, quartile: np.ndarray) -> np.ndarray:
  """Returns [n, 4 * columns]: each sentence's counts in the columns of its quartile, and zeros elsewhere."""
  return np.concatenate([np.where((quartile == q)[:, None], sums, 0) for q in range(QUARTILES)], axis=1)


def compared(d: Difference, name: str = 'full less k', prefix: str = '') -> dict[str, float]:
  return {name: d.value, f'{prefix}from': d.low, f'{prefix}to': d.high}


def checks(tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
  """Returns which of the paper's statements hold in these tables, each with its measured numbers."""
  verdicts = []
  interval = lambda row, key, prefix='': f'{row[key]:+.2f} ({row[f"{prefix}from"]:+.2f} to {row[f"{prefix}to"]:+.2f})'
  for row in tables['orders']:
    if row['order'].isdecimal() and int(row['order']) > 4:
      for key in row:
        if key.endswith(' less k'):
          reference = key.removesuffix(' less k')
          prefix = '' if reference == 'full' else f'{reference} '
          inside = row[f'{prefix}from'] <= 0 <= row[f'{prefix}to']
          name = 'full history' if reference == 'full' else f'order {reference}'
          statement = (
            f'{row["corpus"]}, order {row["order"]}: on par with {name} (within {PAR} BLEU, or 0 in the interval)'
          )
          verdicts.append(verdict(statement, inside or abs(row[key]) <= PAR, interval(row, key, prefix)))
  for row in tables['slopes']:
    verdicts.append(verdict(
      f'{row["corpus"]}, order {row["order"]}: full history does not gain more on long sentences (slope not above 0)',
      row['from'] <= 0, interval(row, 'BLEU a quartile'),
    ))  # fmt: skip
  for found in verdicts:
    print('PASS' if found['pass'] else 'MISS', found['statement'], '--', found['measured'])
  return verdicts


def verdict(statement: str, holds: bool, measured: str) -> dict[str, Any]:
  return {'statement': statement, 'pass': bool(holds), 'measured': measured}
