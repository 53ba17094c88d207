"""Metrics of text classification, from sums over batches so that a test set of any size fits.

  accuracy      share of texts whose likeliest class is the true one
  macro F1      mean over classes of F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c); classes without any text and prediction do not count
  micro F1      2 TP / (2 TP + FP + FN), summed over classes; with one label per text it is the accuracy
  best micro F1 of many labels with the one threshold that is the best for these texts
  P@k           share of the k likeliest labels that are true
  recall@5      true labels among the 5 likeliest, divided by all true labels
  KanShan       P R / (P + R) with P = sum_{i=1..5} p_i / ln(i + 1) and R = recall@5; p_i is the share of texts whose i-th likeliest
                label is true, as in the competition, or the precision of the first i
  ECE           sum_m n_m / n |accuracy_m - confidence_m| over 15 bins of equal width (https://arxiv.org/abs/1706.04599); for many labels
                every pair of text and label is one prediction

The KanShan score as published lacks the factor 2 of an F1: `standard=True` has it. Ties are broken by the lower class.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxlm.errors import DataError

if TYPE_CHECKING:
  from jaxtyping import Float, Int

BINS = 15
TOP = 5
THRESHOLD_STEPS = 1000


def top_classes(scores: Float[np.ndarray, 'B C'], k: int) -> Int[np.ndarray, 'B k']:
  """Returns the k classes with the highest scores of each text, best first; of equal scores the lower class comes first."""
  k = min(k, scores.shape[1])
  return np.argsort(-scores, axis=1, kind='stable')[:, :k]


def f1(true_positives, predicted, actual):
  """Returns 2 TP / (predicted + actual), element by element; 0 where both are 0."""
  total = np.asarray(predicted) + np.asarray(actual)
  return 2 * np.asarray(true_positives) / np.maximum(total, 1)


def macro_f1(
  true_positives: Int[np.ndarray, ' C'], predicted: Int[np.ndarray, ' C'], actual: Int[np.ndarray, ' C']
) -> float:
  """Returns the mean F1 of the classes that occur among the predictions or the true labels; 0 if none does."""
  there = (predicted + actual) > 0
  return float(f1(true_positives, predicted, actual)[there].mean()) if there.any() else 0.0


def kanshan_precision(shares: Float[np.ndarray, ' 5'], *, first_i: bool = False) -> float:
  """Returns P = sum_i p_i / ln(i + 1).

  Args:
    shares: share of texts whose i-th likeliest label is true, for i = 1 ... 5.
    first_i: take the precision of the first i labels as p_i, instead of `shares[i - 1]`.
  """
  ranks = np.arange(1, len(shares) + 1)
  at_rank = np.cumsum(shares) / ranks if first_i else np.asarray(shares)
  return float(np.sum(at_rank / np.log(ranks + 1)))


def kanshan_score(precision: float, recall: float, *, standard: bool = False) -> float:
  """Returns P R / (P + R), or with `standard` twice that; 0 if both are 0."""
  score = precision * recall / (precision + recall) if precision + recall else 0.0
  return 2 * score if standard else score


def calibration_error(counts: Int[np.ndarray, ' M'], confidence: np.ndarray, correct: np.ndarray) -> float:
  """Returns the expected calibration error from sums over each bin: predictions, their probabilities, and how many are right."""
  return float(np.abs(correct - confidence).sum() / max(1, counts.sum()))


def f1_by_threshold(positives: Int[np.ndarray, '*classes S'], negatives: Int[np.ndarray, '*classes S']) -> np.ndarray:
  """Returns the F1 for a threshold at the beginning of each step; arguments as for `best_thresholds`."""
  above = lambda counts: np.flip(
    np.cumsum(np.flip(counts, -1), axis=-1), -1
  )  # Texts at or above each step's beginning.
  hits, others = above(positives), above(negatives)
  return f1(hits, hits + others, hits[..., :1])


def best_thresholds(
  positives: Int[np.ndarray, 'C S'], negatives: Int[np.ndarray, 'C S'], *, each: bool = False
) -> Float[np.ndarray, ' C']:
  """Returns the threshold of each class: labels whose probability is at least the threshold are predicted.

  Args:
    positives, negatives: number of texts with and without the label by probability, in S steps of equal width.
    each: choose the threshold of each class for its own F1; a class without positives keeps the common one. Otherwise all classes have
      the one threshold with the best micro F1.
  """
  steps = positives.shape[1]
  common = int(np.argmax(f1_by_threshold(positives.sum(0), negatives.sum(0))))
  chosen = np.full(len(positives), common)
  if each:
    chosen = np.where(positives.any(axis=1), np.argmax(f1_by_threshold(positives, negatives), axis=1), chosen)
  return chosen / steps


@dataclasses.dataclass
class Scores:
  """Sums from which the metrics of one label column are computed; `add` adds a batch.

  Attributes:
    classes: number of classes.
    multilabel: whether a text may have any number of labels.
    thresholds: probability from which each label is predicted, for many labels; None: 0.5.
  """

  classes: int
  multilabel: bool = False
  thresholds: np.ndarray | None = None

  def __post_init__(self):
    C = self.classes
    self.texts, self.loss = 0, 0.0
    self.hits = np.zeros(min(TOP, C), np.int64)  # Texts whose i-th likeliest label is true.
    self.true_positives, self.predicted, self.actual = (np.zeros(C, np.int64) for _ in range(3))
    self.bin_counts, self.bin_correct = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    self.bin_confidence = np.zeros(BINS)
    self.exact = 0
    if self.multilabel:
      self.positives, self.negatives = (np.zeros((C, THRESHOLD_STEPS), np.int64) for _ in range(2))

  def add(self, logits: Float[np.ndarray, 'B C'], labels: np.ndarray) -> None:
    """Adds a batch.

    Args:
      logits: float logits.
      labels: int [B], the class of each text, -1 for a text without one, which is left out; or bool [B, C] for many labels.
    """
    logits = np.asarray(logits, np.float64)
    if self.multilabel:
      self._add_many(logits, np.asarray(labels, bool))
    else:
      known = np.asarray(labels) >= 0
      self._add_one(logits[known], np.asarray(labels)[known])

  def _add_one(self, logits, labels):
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    truth = np.zeros(logits.shape, bool)
    truth[np.arange(len(labels)), labels] = True
    self.loss -= log_p[truth].sum()
    top = top_classes(logits, TOP)
    first = top[:, 0]
    self._count(top, truth)
    self._count_classes(_one_hot(first, self.classes), truth)
    self.exact += int((first == labels).sum())
    self._bin(np.exp(log_p[np.arange(len(labels)), first]), first == labels)

  def _add_many(self, logits, truth):
    p = _sigmoid(logits)
    # -log sigmoid(x) = log(1 + exp(-x)), of the labels that are there; of the others -log sigmoid(-x).
    self.loss += np.logaddexp(0, np.where(truth, -logits, logits)).sum()
    self._count(top_classes(logits, TOP), truth)
    thresholds = 0.5 if self.thresholds is None else self.thresholds.reshape(1, -1)
    predicted = p >= thresholds
    self._count_classes(predicted, truth)
    self.exact += int((predicted == truth).all(axis=1).sum())
    self._bin(p.ravel(), truth.ravel())
    steps = np.minimum((p * THRESHOLD_STEPS).astype(np.int64), THRESHOLD_STEPS - 1)
    flat = steps + np.arange(self.classes) * THRESHOLD_STEPS
    count = lambda some: np.bincount(flat[some], minlength=self.positives.size).reshape(self.positives.shape)
    self.positives += count(truth)
    self.negatives += count(~truth)

  def _count(self, top, truth):
    self.texts += len(top)
    self.hits += np.take_along_axis(truth, top, axis=1).sum(axis=0)

  def _count_classes(self, predicted, truth):
    self.true_positives += (predicted & truth).sum(axis=0)
    self.predicted += predicted.sum(axis=0)
    self.actual += truth.sum(axis=0)

  def _bin(self, confidence, correct):
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    self.bin_counts += np.bincount(bins, minlength=BINS)
    self.bin_correct += np.bincount(bins[correct], minlength=BINS)
    self.bin_confidence += np.bincount(bins, weights=confidence, minlength=BINS)

  def best_thresholds(self, *, each: bool = False) -> np.ndarray:
    """Returns the thresholds that would have been best on the texts added so far; see the function of this name."""
    return best_thresholds(self.positives, self.negatives, each=each)

  def metrics(self) -> dict[str, float]:
    """Returns all metrics that are defined for this column. Raises DataError if no text has a label."""
    if not self.texts:
      raise DataError('No text has a label, so there is nothing to measure.')
    n, shares = self.texts, self.hits / self.texts
    micro = float(f1(self.true_positives.sum(), self.predicted.sum(), self.actual.sum()))
    found = {
      'loss': self.loss / n,
      'accuracy': self.exact / n,
      'macro_f1': macro_f1(self.true_positives, self.predicted, self.actual),
      'micro_f1': micro,
      'ece': calibration_error(self.bin_counts, self.bin_confidence, self.bin_correct),
    }
    if self.multilabel:
      recall, precision = float(self.hits.sum() / max(1, self.actual.sum())), kanshan_precision(shares)
      found |= {f'p@{k}': float(shares[:k].mean()) for k in (1, 3, 5) if k <= len(shares)}
      found |= {
        'micro_f1_best': float(f1_by_threshold(self.positives.sum(0), self.negatives.sum(0)).max()),
        'recall@5': recall,
        'kanshan_p': precision,
        'kanshan': kanshan_score(precision, recall),
        'kanshan_standard': kanshan_score(precision, recall, standard=True),
        'kanshan_first_i': kanshan_score(kanshan_precision(shares, first_i=True), recall),
      }
    return found


def _one_hot(classes, C):
  return np.arange(C) == classes[:, None]


def _sigmoid(x):
  return np.exp(-np.logaddexp(0, -x))
