"""ngram-OaXE lies between OaXE and cross-entropy, keeps n-grams together, and drops what a model does not believe."""

import functools

import chex
import jax
import numpy as np
import pytest

from jaxlm import losses
from jaxlm.losses import chunked_ngram_oaxe
from tests.jaxlm.losses.order_cases import (
  LENGTHS,
  MASK,
  T,
  V,
  best_blocks,
  best_order,
  in_order,
  inputs,
  sentences,
  with_nan,
)
from tests.models import slow

# Each in one program: run eagerly, each operation would be compiled apart.
OAXE = ('truncation', 'truncation_base', 'pin_eos', 'label_smoothing')
oaxe = jax.jit(losses.oaxe, static_argnames=OAXE)
ngram_oaxe = jax.jit(losses.ngram_oaxe, static_argnames=(*OAXE, 'n', 'mode', 'trunc_unit'))
cross_entropy = jax.jit(losses.cross_entropy)


@pytest.mark.parametrize('options', [{'truncation': 0.2, 'label_smoothing': 0.1}, *slow({}, {'pin_eos': True})])
@pytest.mark.parametrize('mode', ['window', 'block'])
def test_n_of_one_is_oaxe_and_a_long_n_is_cross_entropy(mode, options):
  _, _, logits, targets = inputs()
  ngram = functools.partial(ngram_oaxe, logits, targets, MASK, mode=mode, **options)
  chex.assert_trees_all_close(ngram(n=1), oaxe(logits, targets, MASK, **options), rtol=1e-5)
  for n in (T, T + 5):
    expected = cross_entropy(logits, targets, MASK)[0]
    np.testing.assert_allclose(
      ngram(n=n, **options | {'truncation': None, 'label_smoothing': 0.0})[0], expected, rtol=1e-5
    )


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('n', [2, 3])
def test_blocks_are_the_best_on_any_grid(n, seed):
  _, _, logits, targets = inputs(seed)
  loss = ngram_oaxe(logits, targets, MASK, n=n, mode='block')[0]
  np.testing.assert_allclose(loss, sum(best_blocks(c, n) for c in sentences(logits, targets)), rtol=1e-5)


@pytest.mark.parametrize('seed', range(4))
def test_longer_phrases_cost_more(seed):
  _, _, logits, targets = inputs(seed)
  costs = [c for c in sentences(logits, targets) if len(c)]
  phrase = [sum(best_order(c, n) for c in costs) for n in (1, 2, 3)]
  blocks = [float(ngram_oaxe(logits, targets, MASK, n=n, mode='block')[0]) for n in (2, 3)]
  plain = sum(in_order(c) for c in costs)
  assert phrase[0] <= phrase[1] <= phrase[2] <= plain
  assert all(p <= b + 1e-4 and b <= plain + 1e-4 for p, b in zip(phrase[1:], blocks))
  np.testing.assert_allclose(oaxe(logits, targets, MASK)[0], phrase[0], rtol=1e-5)


def windows(cost, n):
  """Returns [(mean cost, [(position, cost, number of windows over the position)])] of the best windows, by definition."""
  from scipy.optimize import linear_sum_assignment

  N = len(cost)
  n = min(n, N)
  m = N - n + 1
  W = np.array([[sum(cost[i + k, j + k] for k in range(n)) for j in range(m)] for i in range(m)])
  for i, j in zip(*linear_sum_assignment(W)):
    cov = [sum(a <= i + k < a + n for a in range(m)) for k in range(n)]
    yield W[i, j] / n, [(cost[i + k, j + k], cov[k]) for k in range(n)]


@pytest.mark.parametrize('unit', ['window', 'token'])
@pytest.mark.parametrize('n', [2, 3, 4])
def test_windows_weigh_tokens_by_their_coverage_and_truncate(n, unit):
  _, _, logits, targets = inputs()
  for pi in (None, 0.1):
    margin = np.inf if pi is None else -np.log(pi)
    expected = 0.0
    for cost in sentences(logits, targets):
      for mean, tokens in windows(cost, n) if len(cost) else ():
        expected += sum(c / cov for c, cov in tokens if (mean if unit == 'window' else c) <= margin)
    actual = ngram_oaxe(logits, targets, MASK, n=n, truncation=pi, trunc_unit=unit)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_blocks_are_truncated_whole():
  # Two blocks: one believed, one not; the cheap token of the second block goes with its dear one.
  p = np.full((1, 4, V), 1e-4, np.float32)
  p[0, np.arange(4), np.arange(4)] = [0.9, 0.9, 0.9, 1e-4]
  p[:, :, V - 1] = 1 - p[:, :, : V - 1].sum(axis=-1)
  logits, targets = np.log(p), np.arange(4)[None]
  loss = functools.partial(ngram_oaxe, logits, targets, n=2, mode='block', truncation=0.1)
  np.testing.assert_allclose(loss()[0], -2 * np.log(0.9), rtol=1e-4)
  np.testing.assert_allclose(loss(trunc_unit='token')[0], -3 * np.log(0.9), rtol=1e-4)


def test_a_rotation_of_phrases_costs_nothing():
  """Positions believe in the target's two halves swapped: n-grams within the halves are all there."""
  targets = np.arange(6)[None]
  logits = 50.0 * np.eye(V, dtype=np.float32)[np.array([[3, 4, 5, 0, 1, 2]])]
  assert cross_entropy(logits, targets)[0] > 250
  assert oaxe(logits, targets)[0] < 1e-3 and ngram_oaxe(logits, targets, n=3, mode='block')[0] < 1e-3
  # The windows across the seam are dropped. The tokens beside it are in half as many windows then.
  assert ngram_oaxe(logits, targets, n=2, truncation=0.1)[0] < 1e-3 < ngram_oaxe(logits, targets, n=2)[0]


@pytest.mark.parametrize('mode', ['window', 'block'])
def test_gradients_of_hidden_states_are_those_of_logits(mode):
  hidden, matrix, _, targets = inputs()
  options = {'n': 2, 'mode': mode, 'truncation': 0.1, 'label_smoothing': 0.1, 'pin_eos': True}
  chunked = lambda h, w: chunked_ngram_oaxe(h, w, targets, MASK, vocab_chunk=4, **options)[0]
  plain = lambda h, w: ngram_oaxe(h @ w, targets, MASK, **options)[0]
  both = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, matrix)
  chex.assert_trees_all_close(both(chunked), both(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mode', ['window', 'block'])
def test_nan_shows_and_padding_costs_nothing(mode):
  _, _, logits, targets = inputs()
  loss = functools.partial(ngram_oaxe, targets=targets, mode=mode, truncation=0.2)
  assert np.isnan(loss(with_nan(logits, 1, 2, 3), mask=MASK)[0])
  assert np.isfinite(loss(with_nan(logits, 1, 5, 3), mask=MASK)[0])
  assert loss(logits, mask=np.zeros_like(MASK)) == (0, 0)
  assert loss(logits, mask=MASK)[1] == LENGTHS.sum()


@pytest.mark.parametrize(
  'change, message',
  [({'n': 0}, 'n=0'), ({'mode': 'phrase'}, "mode='phrase'"), ({'trunc_unit': 'word'}, "trunc_unit='word'")],
)
def test_wrong_arguments_are_named(change, message):
  _, _, logits, targets = inputs()
  with pytest.raises(ValueError, match=message):
    ngram_oaxe(logits, targets, MASK, **change)
