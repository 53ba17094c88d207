"""DSIR importance weights: how much likelier a text's words and word pairs are in a target corpus than in the pool.

  log w(text) = sum over its unigrams and bigrams g of log p_target(h(g)) - log p_pool(h(g)),   h: 10,000 hash buckets

(https://arxiv.org/abs/2302.03169). It is a cheap baseline for data selection. As in the authors' code, text is lower-cased and
split into runs of word characters and of punctuation. Two things differ. The authors hash with SHA-256; this module uses
CRC-32, which is much faster. The authors give an empty bucket the probability 1e-8; this module adds 1 to every count, because
1e-8 would dominate the weights if the target is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import re
from typing import TYPE_CHECKING
import zlib

import numpy as np

from jaxlm import errors

if TYPE_CHECKING:
  from jaxtyping import Float, Int

BUCKETS = 10_000
_WORDS = re.compile(r'\w+|[^\w\s]+')


def ngrams(text: str, buckets: int = BUCKETS) -> Int[np.ndarray, ' n']:
  """Returns the bucket of each word and of each pair of adjacent words."""
  words = _WORDS.findall(text.lower())
  grams = [*words, *map(' '.join, zip(words, words[1:]))]
  return np.fromiter((zlib.crc32(g.encode()) for g in grams), np.int64, len(grams)) % buckets


def log_probabilities(texts: Iterable[str], buckets: int = BUCKETS) -> Float[np.ndarray, ' buckets']:
  """Returns the log-probability of each bucket in a corpus. Raises DataError if there is no word in it."""
  counts = np.zeros(buckets, np.int64)
  for text in texts:
    counts += np.bincount(ngrams(text, buckets), minlength=buckets)
  if not counts.any():
    raise errors.DataError('The corpus contains no word, so no text can be compared with it.')
  return np.log(counts + 1) - np.log(counts.sum() + buckets)


def log_weights(
  texts: Iterable[str], target: Float[np.ndarray, ' buckets'], pool: Float[np.ndarray, ' buckets']
) -> Iterator[float]:
  """Yields log w of each text; `target` and `pool` are log-probabilities."""
  gain = target - pool
  for text in texts:
    yield float(gain[ngrams(text, len(gain))].sum())
