"""The relaxed rules over several steps, against stochastic beam search with the target alone. One program each over all trials."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats

from decoders.atspeed.config import AtSpeedConfig
from decoders.beam import constrained
from jaxlm.data.item_trie import ItemTrie
from tests.decoders.atspeed.engine import speculate
from tests.decoders.beam.tables import TableReader, tables

V, K, L, TRIALS = 4, 2, 3, 4096
HISTORY, LENGTHS = np.full((TRIALS, 1), 2, np.int32), np.full(TRIALS, 1, np.int32)
CODES = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 1], [1, 0, 0], [1, 0, 3], [1, 3, 3], [2, 2, 2]])


@pytest.fixture(scope='module')
def models():
  """(parameters of the target, those of a draft that is like it, the trie)."""
  target = tables(4, V, scale=1.0)
  noise = np.random.default_rng(5).standard_normal(target['table'].shape).astype(np.float32)
  return target, {**target, 'table': target['table'] + 0.7 * noise}, ItemTrie.from_ids(CODES)


@functools.partial(jax.jit, static_argnames='config')
def run(target, draft, trie, keys, *, config):
  state = speculate(target, draft, HISTORY, LENGTHS, trie, keys, config=config)
  return state.beams.sorted().nodes, state.calls, state.accepted


def direct(target, trie, seed: int) -> np.ndarray:
  keys = jax.random.split(jax.random.key(seed), TRIALS)
  return np.asarray(
    constrained.search(target, HISTORY, LENGTHS, trie, None, keys, reader=TableReader(), width=K).leaves
  )


def same_law(*samples: np.ndarray) -> float:
  """Returns the p-value of lists of leaves having one law."""
  size = 1 + max(x.max() for x in samples)
  counts = np.stack([np.bincount(x[:, 0] * size + x[:, 1], minlength=size**2) for x in samples])
  often = counts.sum(axis=0) >= 10
  return stats.chi2_contingency(
    np.concatenate([counts[:, often], counts[:, ~often].sum(axis=1, keepdims=True) + 1], axis=1)
  ).pvalue


def test_the_exact_rule_has_the_law_of_the_targets_stochastic_search(models):
  target, draft, trie = models
  config = AtSpeedConfig(k=K, beam=4, gamma=2, verify='relaxed_exact')
  leaves, calls, accepted = map(
    np.asarray, run(target, draft, trie, jax.random.split(jax.random.key(0), TRIALS), config=config)
  )
  assert 1.2 < calls.mean() < 2.2 and (calls + accepted == L).all() and len(set(calls.tolist())) == L
  assert same_law(leaves, direct(target, trie, 1)) > 1e-3
  assert same_law(leaves, direct(draft, trie, 1)) < 1e-3  # The test finds the draft's law.


@pytest.mark.slow
def test_a_result_depends_on_the_key_of_its_history_alone(models):
  target, draft, trie = models
  config = AtSpeedConfig(k=K, beam=4, gamma=2, verify='relaxed_exact')
  keys = jax.random.split(jax.random.key(0), TRIALS)
  one, other = (np.asarray(run(target, draft, trie, k, config=config)[0]) for k in (keys, keys[::-1]))
  np.testing.assert_array_equal(one, other[::-1])


@pytest.mark.slow
def test_the_relaxed_rule_accepts_more_and_has_another_law(models):
  target, draft, trie = models
  keys, calls = jax.random.split(jax.random.key(0), TRIALS), {}
  for verify in ('relaxed', 'relaxed_exact'):
    config = AtSpeedConfig(k=K, beam=4, gamma=2, verify=verify)
    leaves, calls[verify], accepted = map(np.asarray, run(target, draft, trie, keys, config=config))
    assert (calls[verify] + accepted == L).all()
    if verify == 'relaxed':
      assert same_law(leaves, direct(target, trie, 1)) < 1e-3
      assert all(len(set(row)) == K for row in leaves.tolist())
  assert calls['relaxed'].mean() < calls['relaxed_exact'].mean()
