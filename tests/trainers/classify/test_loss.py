"""Losses of one and of many labels are what their formulas say, written as loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.exam_config import Column, ExamConfig
from trainers.classify import loss

B, C = 5, 4


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return rng.normal(size=(B, C)).astype(np.float32), rng.random((B, C)) < 0.4, np.array([1, 1, 0, 1, 1], np.float32)


@pytest.mark.parametrize('weights', [None, np.array([0.5, 2.0, 1.0, 3.0], np.float32)], ids=['equal', 'weighted'])
def test_losses_by_loops(batch, weights):
  logits, truth, weight = batch
  labels = np.array([0, 3, 1, -1, 2])
  w = np.ones(C) if weights is None else weights
  total = n = 0.0
  for b in range(B):
    if labels[b] >= 0:
      total -= weight[b] * w[labels[b]] * (logits[b, labels[b]] - np.log(np.exp(logits[b]).sum()))
      n += weight[b] * w[labels[b]]
  np.testing.assert_allclose(loss.one_label_loss(logits, labels, weight, weights), (total, n), rtol=1e-5)
  p = 1 / (1 + np.exp(-logits))
  total = 0.0
  for b in range(B):
    for c in range(C):
      total -= weight[b] * (w[c] * np.log(p[b, c]) if truth[b, c] else np.log(1 - p[b, c]))
  np.testing.assert_allclose(loss.many_labels_loss(logits, truth, weight, weights), (total, 4), rtol=1e-5)


def test_balanced_classes_weigh_the_same():
  counts = np.array([10, 30, 60])
  weights = loss.balanced_weights(counts, 100, multilabel=False)
  np.testing.assert_allclose(weights * counts, 100 / 3, rtol=1e-6)
  several = loss.balanced_weights(np.array([10, 50, 0]), 1000, multilabel=True)
  np.testing.assert_allclose(several, [99, 19, 100])


def test_each_column_is_a_term(batch):
  logits, truth, weight = batch
  config = ExamConfig(columns=(Column('a', 1 + 1), Column('b', 2, True)))
  made = {'labels_0': jnp.array([0, 1, 0, 1, -1]), 'labels_1': truth[:, 2:], 'weight': weight}
  terms = loss.loss_terms(logits, made, config, [None, None])
  assert list(terms) == ['a_loss', 'b_loss'] and terms['a_loss'].weight == 3 and terms['b_loss'].weight == 4
  np.testing.assert_allclose(terms['b_loss'].total, loss.many_labels_loss(logits[:, 2:], truth[:, 2:], weight)[0])
