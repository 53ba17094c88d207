"""BLEU from counts that add up over sentences, so that a resampled test set is scored without reading texts again.

  BLEU = 100 min(1, e^(1 - r / h)) (p_1 p_2 p_3 p_4)^(1/4),   p_n = matching n-grams / n-grams of the translations

h and r are the words of translations and references. Tokenization (13a) and counts are those of sacreBLEU, and so is the score of
the sums. One reference for each translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Float

COLUMNS = 10
"""Matching n-grams of n = 1 ... 4, all n-grams of n = 1 ... 4, words of the translation, words of the reference."""


def counts(translations: Sequence[str], references: Sequence[str]) -> Float[np.ndarray, 'n 10']:
  """Returns the counts of each sentence. Raises ValueError for lists of different lengths."""
  import sacrebleu

  if len(translations) != len(references):
    raise ValueError(f'{len(translations)} translations have {len(references)} references: there must be one for each.')
  metric = sacrebleu.BLEU(
    effective_order=True
  )  # The counts do not depend on it; without it, each sentence makes a warning.
  scores = [metric.sentence_score(text, [reference]) for text, reference in zip(translations, references)]
  rows = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]
  return np.array(rows, np.float64).reshape(-1, COLUMNS)


def bleu(sums: Float[np.ndarray, '... 10']) -> Float[np.ndarray, '...']:
  """Returns BLEU of sums of counts, from 0 to 100; an n-gram order without a match is smoothed as sacreBLEU does by default."""
  matches, totals, words, reference = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
  # Each further order without a match counts half as many of them as the one before.
  none = (matches == 0) & (totals > 0)
  smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), matches)
  precision = smoothed / np.maximum(totals, 1)
  brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(words, 1)))
  mean = np.exp(np.log(np.maximum(precision, 1e-300)).mean(axis=-1))
  return np.where((totals > 0).all(axis=-1) & matches.any(axis=-1), 100 * brevity * mean, 0.0)
