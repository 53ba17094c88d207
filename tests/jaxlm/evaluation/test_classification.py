"""Metrics of classification: by hand, by loops, by scikit-learn where it is installed, and whatever the batches are."""

import numpy as np
import pytest

from jaxlm.errors import DataError
from jaxlm.evaluation import classification
from jaxlm.evaluation.classification import Scores

C = 6


@pytest.fixture(scope='module')
def one():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, C - 1, 200)  # The last class has no text.
  return rng.normal(size=(200, C)) + 2 * np.eye(C)[labels] * (rng.random((200, 1)) < 0.6), labels


@pytest.fixture(scope='module')
def many():
  rng = np.random.default_rng(1)
  truth = rng.random((200, C)) < np.array([0.5, 0.3, 0.2, 0.2, 0.1, 0.0])
  return rng.normal(size=(200, C)) - 1.5 + 2.5 * truth, truth


def measured(logits, labels, batch=64, **options):
  scores = Scores(C, **options)
  for first in range(0, len(logits), batch):
    scores.add(logits[first : first + batch], labels[first : first + batch])
  return scores


@pytest.mark.parametrize('multilabel', [False, True])
def test_batches_do_not_matter(one, many, multilabel):
  data = many if multilabel else one
  whole, parts = (measured(*data, batch, multilabel=multilabel).metrics() for batch in (200, 7))
  assert whole == pytest.approx(parts)


def test_one_label_by_loops(one):
  logits, labels = one
  found = measured(logits, labels).metrics()
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  guess = p.argmax(1)
  assert found['accuracy'] == found['micro_f1'] == np.mean(guess == labels)
  assert found['loss'] == pytest.approx(-np.log(p[np.arange(200), labels]).mean())
  f1s = []
  for c in range(C):
    tp, fp, fn = (
      np.sum(x) for x in ((guess == c) & (labels == c), (guess == c) & (labels != c), (guess != c) & (labels == c))
    )
    f1s += [2 * tp / (2 * tp + fp + fn)] if tp + fp + fn else []
  assert found['macro_f1'] == pytest.approx(np.mean(f1s))
  confidence, error = p.max(1), 0.0
  for m in range(15):
    inside = (confidence >= m / 15) & ((confidence < (m + 1) / 15) | (m == 14))
    if inside.any():
      error += inside.mean() * abs((guess == labels)[inside].mean() - confidence[inside].mean())
  assert found['ece'] == pytest.approx(error)


def test_many_labels_by_loops(many):
  logits, truth = many
  found = measured(logits, truth, multilabel=True).metrics()
  order = np.argsort(-logits, axis=1)
  for k in (1, 3, 5):
    assert found[f'p@{k}'] == pytest.approx(np.mean([truth[i, order[i, :k]].mean() for i in range(200)]))
  hits = sum(truth[i, order[i, :5]].sum() for i in range(200))
  assert found['recall@5'] == pytest.approx(hits / truth.sum())
  at_rank = [np.mean([truth[i, order[i, r]] for i in range(200)]) for r in range(5)]
  precision = sum(p / np.log(r + 2) for r, p in enumerate(at_rank))
  assert found['kanshan_p'] == pytest.approx(precision)
  assert found['kanshan'] == pytest.approx(precision * found['recall@5'] / (precision + found['recall@5']))
  assert found['kanshan_standard'] == pytest.approx(2 * found['kanshan'])
  first_i = sum(np.mean(at_rank[: r + 1]) / np.log(r + 2) for r in range(5))
  assert found['kanshan_first_i'] == pytest.approx(classification.kanshan_score(first_i, found['recall@5']))
  p = 1 / (1 + np.exp(-logits))
  assert found['loss'] == pytest.approx(-(np.log(p) * truth + np.log(1 - p) * ~truth).sum() / 200)
  assert found['accuracy'] == np.mean(((p >= 0.5) == truth).all(1))


def test_published_values_of_the_kanshan_score():
  assert round(classification.kanshan_score(1.360, 0.561), 3) == 0.397
  assert round(classification.kanshan_score(1.360, 0.561, standard=True), 3) == 0.794
  assert round(classification.kanshan_precision(np.ones(5)), 4) == 4.2537
  assert round(classification.kanshan_precision(np.ones(5), first_i=True), 4) == 4.2537
  assert classification.kanshan_score(0.0, 0.0) == 0.0


@pytest.mark.parametrize('each', [False, True])
def test_thresholds_are_the_best_of_all(many, each):
  logits, truth = many
  found = measured(logits, truth, multilabel=True).best_thresholds(each=each)
  p = 1 / (1 + np.exp(-logits))
  score = lambda guess, truth: 2 * (guess & truth).sum() / (guess.sum() + truth.sum())
  candidates = np.arange(0, 1, 0.001)
  if each:
    for c in range(C - 1):
      best = max(score(p[:, c] >= t, truth[:, c]) for t in candidates)
      assert score(p[:, c] >= found[c], truth[:, c]) == pytest.approx(best)
    common = measured(logits, truth, multilabel=True).best_thresholds()
    assert found[-1] == common[-1]  # No text has the last label.
  else:
    assert len(set(found)) == 1
    assert score(p >= found[0], truth) == pytest.approx(max(score(p >= t, truth) for t in candidates))
  with_them = measured(logits, truth, multilabel=True, thresholds=found).metrics()
  assert each or with_them['micro_f1'] == pytest.approx(with_them['micro_f1_best'])
  assert with_them['micro_f1'] > measured(logits, truth, multilabel=True).metrics()['micro_f1'] + 0.01


def test_equal_scores_are_ranked_by_the_lower_class():
  np.testing.assert_array_equal(classification.top_classes(np.array([[1.0, 2.0, 2.0, 1.0]]), 3), [[1, 2, 0]])


def test_texts_without_a_label_are_left_out(one):
  logits, labels = one
  hidden = np.where(np.arange(200) % 3 == 0, -1, labels)
  assert measured(logits, hidden).metrics() == pytest.approx(
    measured(logits[hidden >= 0], labels[hidden >= 0]).metrics()
  )
  with pytest.raises(DataError, match='No text has a label'):
    measured(logits, np.full(200, -1)).metrics()


@pytest.mark.slow
def test_f1_is_that_of_scikit_learn(one, many):
  sklearn = pytest.importorskip('sklearn.metrics', reason='the peer is not installed: pip install jaxlm[parity]')
  logits, labels = one
  found = measured(logits, labels).metrics()
  assert found['macro_f1'] == pytest.approx(sklearn.f1_score(labels, logits.argmax(1), average='macro'))
  logits, truth = many
  found = measured(logits, truth, multilabel=True).metrics()
  there = truth.any(0) | (logits >= 0).any(0)
  assert found['micro_f1'] == pytest.approx(sklearn.f1_score(truth, logits >= 0, average='micro'))
  assert found['macro_f1'] == pytest.approx(sklearn.f1_score(truth[:, there], (logits >= 0)[:, there], average='macro'))
