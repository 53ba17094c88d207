"""Speculative beam search over models that are tables: the target's own search, whatever is drafted.

Each configuration is one program over all its random cases.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.atspeed import rules
from decoders.atspeed.config import AtSpeedConfig
from decoders.beam import constrained
from jaxlm.data.item_trie import TrieCapacity
from tests.decoders.atspeed.engine import speculate
from tests.decoders.beam.tables import TableReader, random_codes, slow_search, stacked_tries, tables

V, L, CASES, B = 6, 4, 512, 2  # 1,024 searches
HISTORIES = np.array([[1, 2, 3], [4, 0, 0]], np.int32)
LENGTHS = np.array([3, 1], np.int32)
CONFIG = AtSpeedConfig(k=3, beam=6, gamma=3, order='nested')
GRID = [
  AtSpeedConfig(k=k, beam=beam, gamma=gamma, order=order)
  for k in (1, 5, 10, 20) for beam in sorted({k, 2 * k, 40}) for gamma in (1, 2, 3) for order in ('score', 'nested')
]  # fmt: skip
# One configuration of eleven takes a minute, and all of them ten.
OTHERS = [
  pytest.param(c, marks=[pytest.mark.slow, *([] if i % 11 == 4 else [pytest.mark.long])]) for i, c in enumerate(GRID)
]


@pytest.fixture(scope='module')
def cases():
  """(identifiers and trie of each case, parameters of each case)."""
  rng = np.random.default_rng(0)
  codes = [random_codes(rng, int(rng.integers(1, 40)), L, V) for _ in range(CASES)]
  assert sum(len(set(c[:, 0])) < CONFIG.k for c in codes) > 100  # fewer first tokens than beams
  shared = tables(0, V)
  words = np.stack([tables(seed, V)['words'] for seed in range(CASES)])
  return codes, stacked_tries(codes, TrieCapacity(192, 48, V)), {'words': words, 'table': shared['table']}


@functools.partial(jax.jit, static_argnames='config')
def run(params, table, tries, *, config):
  axes = {'words': 0, 'table': None}
  search = lambda params, trie: speculate(
    params, {**params, 'table': table}, HISTORIES, LENGTHS, trie, config=config
  ).replace(cache=None, keys=None, values=None, positions=None)
  return jax.vmap(search, (axes, 0))(params, tries)


@functools.partial(jax.jit, static_argnames='width')
def plain(params, tries, *, width):
  search = lambda params, trie: constrained.search(params, HISTORIES, LENGTHS, trie, reader=TableReader(), width=width)
  return jax.vmap(search, ({'words': 0, 'table': None}, 0))(params, tries)


def other_table(table: np.ndarray, draft: str) -> np.ndarray:
  noise = np.random.default_rng(1).standard_normal(table.shape).astype(np.float32)
  return {
    'target': table, 'noisy': table + noise, 'untrained': 2 * noise, 'negated': -table, 'constant': 0 * table
  }[draft]  # fmt: skip


def check_equal(state, expected):
  np.testing.assert_array_equal(state.beams.nodes, expected.leaves)
  np.testing.assert_allclose(state.beams.scores, expected.scores, rtol=1e-6)
  np.testing.assert_array_equal(state.calls + state.accepted, L)
  assert np.asarray(state.depth == L).all() and np.asarray(state.finite).all()


def test_plain_search_equals_a_slow_one(cases):
  codes, tries, params = cases
  leaves, scores = (np.asarray(x) for x in (lambda out: (out.leaves, out.scores))(plain(params, tries, width=CONFIG.k)))
  for i in range(0, CASES, 8):
    trie = jax.tree.map(lambda x, i=i: x[i], tries)
    for b in range(B):
      own = {'words': params['words'][i], 'table': params['table']}
      expected = slow_search(own, codes[i], HISTORIES[b, : LENGTHS[b]].tolist(), CONFIG.k)
      assert [tuple(x) for x in trie.tokens(leaves[i, b]).tolist()][: len(expected)] == [ids for _, ids in expected]
      np.testing.assert_allclose(scores[i, b, : len(expected)], [s for s, _ in expected], atol=1e-5)


@pytest.mark.parametrize('draft', ['target', 'noisy', 'untrained', 'negated', 'constant'])
def test_any_draft_gives_the_targets_own_search(cases, draft):
  _, tries, params = cases
  state = run(params, other_table(params['table'], draft), tries, config=CONFIG)
  check_equal(state, plain(params, tries, width=CONFIG.k))
  # With six tokens and as many drafted prefixes, all first tokens are drafted, so two steps are always had at once.
  least, most = {'target': (1, 1), 'noisy': (1.2, 2)}.get(draft, (1.5, 3))
  assert least <= np.asarray(state.calls).mean() <= most


@pytest.mark.slow
def test_a_rule_that_accepts_what_was_not_drafted_is_found(cases, monkeypatch):
  """The checks above fail for a wrong rule: one that goes on although a beam has no states."""
  _, tries, params = cases
  right = rules.strict
  monkeypatch.setattr(rules, 'strict', lambda *args, **kept: (*right(*args, **kept)[:2], jnp.bool_(True)))
  few = jax.tree.map(lambda x: x[:32], tries)
  own = {'words': params['words'][:32], 'table': params['table']}
  state = run(own, other_table(params['table'], 'untrained'), few, config=CONFIG)
  with pytest.raises(AssertionError, match='not equal'):
    check_equal(state, plain(own, few, width=CONFIG.k))


@pytest.mark.parametrize('config', OTHERS)
def test_every_width_and_lead_gives_the_targets_own_search(cases, config):
  _, tries, params = cases
  expected = plain(params, tries, width=config.k)
  state = run(params, other_table(params['table'], 'noisy'), tries, config=config)
  check_equal(state, expected)
  own = run(params, params['table'], tries, config=config)
  check_equal(own, expected)
  if config.order == 'nested' or config.beam == config.k:
    np.testing.assert_array_equal(own.calls, -(-L // (config.gamma + 1)))
