"""The result of classifying texts."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Contributions:
  """What each word of one text adds to the logits of its likeliest labels.

  logits[i] = sum over words of scores[i] + rest[i]. Except for n-grams, a score belongs to the position of a word: the representation at
  this position has read its neighbours (region embeddings) or all words before it (gru, lm).

  Attributes:
    words: the words that the model has read.
    labels: the likeliest labels, best first.
    scores: float32 [labels, words], what each word adds to the logit.
    interaction: float32 [labels, words], the scores before aggregation. They are no attribution: the MLP may give a position a negative
      weight.
    rest: float32 [labels], the part of the logit that belongs to no word, from biases and padding.
    logits: float32 [labels].
  """

  words: list[str]
  labels: list[str]
  scores: np.ndarray
  interaction: np.ndarray
  rest: np.ndarray
  logits: np.ndarray

  def __repr__(self) -> str:
    best = [self.words[i] for i in np.argsort(-self.scores[0])[:3]]
    return f'Contributions({len(self.words)} words; for {self.labels[0]!r} speak most {", ".join(map(repr, best))})'

  def strongest(self, label: int, most: int = 6) -> list[tuple[str, float]]:
    """Returns the words with the largest absolute scores for a label, in the order of the text."""
    chosen = sorted(np.argsort(-np.abs(self.scores[label]), kind='stable')[:most])
    return [(self.words[i], float(self.scores[label, i])) for i in chosen]


@dataclasses.dataclass(frozen=True)
class ColumnResult:
  """The labels of N texts in one label column.

  Attributes:
    name: name of the column.
    labels: of each text the likeliest labels, best first.
    probabilities: float32 [N, labels], their probabilities: of a softmax, or of each label apart where a text may have several.
    predicted: of each text the labels that are predicted: the likeliest one, or all whose probability reaches the threshold.
    contributions: of each text; None if they were not asked for.
  """

  name: str
  labels: list[list[str]]
  probabilities: np.ndarray
  predicted: list[list[str]]
  contributions: list[Contributions] | None = None


@dataclasses.dataclass(frozen=True)
class Classifications:
  """The labels of texts in all label columns. `labels`, `probabilities`, `predicted` and `contributions` are those of the first column."""

  columns: dict[str, ColumnResult]
  stats: dict[str, Any]
  """texts, seconds, compile_seconds, texts_per_second."""

  @property
  def first(self) -> ColumnResult:
    return next(iter(self.columns.values()))

  @property
  def labels(self) -> list[list[str]]:
    return self.first.labels

  @property
  def probabilities(self) -> np.ndarray:
    return self.first.probabilities

  @property
  def predicted(self) -> list[list[str]]:
    return self.first.predicted

  @property
  def contributions(self) -> list[Contributions] | None:
    return self.first.contributions

  def __repr__(self) -> str:
    names = ', '.join(self.columns)
    best = f'{self.labels[0][0]!r} {self.probabilities[0, 0]:.1%}'
    return f'Classifications({len(self.labels)} texts, {names}; first {best})'
