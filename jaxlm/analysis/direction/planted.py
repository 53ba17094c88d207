"""Tests whether S separates prose from corrupted copies of it, and how simpler scores compare.

Each text is corrupted in three ways, so all groups have the same subjects. The AUC of a score is the probability that prose
scores higher than a corrupted text; it is 0.5 for a score without information. The reverse-modeling paper
(https://arxiv.org/abs/2410.09817) says that a high S means quality; `planted_table` tests this statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlm.data import dsir

if TYPE_CHECKING:
  from jaxtyping import Float

BOILERPLATE = (
  'All rights reserved.',
  'Click here to read more.',
  'Home | About | Contact | Privacy | Terms',
  'Sign up for our newsletter today!',
  'Share this page: Facebook, Twitter, Email',
  'This site uses cookies. By continuing you accept them.',
  'Copyright (c) 2024. Terms and conditions apply.',
)


def shuffled_words(text: str, random: np.random.Generator) -> str:
  """Returns the text with the words of each line in random order."""
  shuffled = lambda line: ' '.join(random.permutation(line.split()).tolist())
  return '\n'.join(shuffled(line) if line.strip() else line for line in text.split('\n'))


def shuffled_lines(text: str, random: np.random.Generator) -> str:
  """Returns the text with its lines in random order, or its sentences if the text is a single line."""
  lines, joint = text.split('\n'), '\n'
  if len(lines) < 2:
    lines, joint = re.split(r'(?<=[.!?]) ', text), ' '
  return joint.join(random.permutation(lines).tolist())


def boilerplate(text: str, random: np.random.Generator) -> str:
  """Returns boilerplate of the text's length, in which about every fifth line is a line of the text."""
  lines, found, size = [x for x in text.split('\n') if x.strip()], [], 0
  while size < len(text):
    own = lines and random.random() < 0.2
    found.append(str(random.choice(lines if own else BOILERPLATE)))
    size += len(found[-1]) + 1
  return '\n'.join(found)


CORRUPTIONS = {'shuffled words': shuffled_words, 'shuffled lines': shuffled_lines, 'boilerplate': boilerplate}


def planted(texts: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
  """Returns {'prose': the texts, name of a corruption: the corrupted texts, ...}."""
  random = np.random.default_rng(seed)
  return {'prose': list(texts), **{name: [f(t, random) for t in texts] for name, f in CORRUPTIONS.items()}}


def auc(good: Float[np.ndarray, ' G'], bad: Float[np.ndarray, ' B']) -> float:
  """Returns the probability that a score in `good` is higher than one in `bad`; a tie counts half."""
  bad = np.sort(bad)
  below, up_to = np.searchsorted(bad, good, side='left'), np.searchsorted(bad, good, side='right')
  return float((below + up_to).mean() / 2 / len(bad))


def planted_table(
  lm: Any, texts: Sequence[str], target: Iterable[str], *, seed: int = 0, **options: Any
) -> dict[str, dict[str, float]]:
  """Returns, for each corruption, the AUC of each score: S, -forward loss, DSIR towards `target`, and length.

  Args:
    lm: a LanguageModel trained on both directions.
    texts: prose that the model was not trained on.
    target: prose that is not among `texts`, for DSIR.
    options: keyword arguments of `score_documents`.
  """
  from jaxlm.analysis.direction.scores import score_documents

  kinds = planted(texts, seed)
  pool = [text for kind in kinds.values() for text in kind]
  scores = list(score_documents(lm, pool, **options))
  weights = list(dsir.log_weights(pool, dsir.log_probabilities(target), dsir.log_probabilities(pool)))
  columns = {
    'S': [s.S for s in scores],
    '-forward loss': [-s.loss_forward for s in scores],
    'DSIR': weights,
    'length': [s.tokens for s in scores],
  }
  arrays = {name: np.reshape(np.array(x, float), (len(kinds), len(texts))) for name, x in columns.items()}
  return {
    kind: {name: auc(x[0], x[i]) for name, x in arrays.items()} for i, kind in enumerate(kinds) if kind != 'prose'
  }
