"""Beam search over a trie against a slow one, over models that are tables."""

import jax
import numpy as np
import pytest

from decoders.beam import constrained
from jaxlm.data.item_trie import NOWHERE, ItemTrie, TrieCapacity
from tests.decoders.beam.tables import TableReader, random_codes, slow_search, tables

V, K = 7, 4
CAPACITY = TrieCapacity(96, 32, V)
HISTORIES = np.array([[1, 2, 3, 4], [5, 0, 0, 0], [3, 3, 0, 0]], np.int32)
LENGTHS = np.array([4, 1, 2], np.int32)


def search(params, trie, closed=None, keys=None):
  return constrained.search(params, HISTORIES, LENGTHS, trie, closed, keys, reader=TableReader(), width=K)


def check(out, trie: ItemTrie, params, codes, histories=HISTORIES, lengths=LENGTHS):
  for b, leaves in enumerate(np.asarray(out.leaves)):
    expected = slow_search(
      params, codes[b] if isinstance(codes, list) else codes, histories[b, : lengths[b]].tolist(), K
    )
    found = [tuple(ids) for ids in trie.tokens(leaves).tolist()]
    assert found == [ids for _, ids in expected] + [(NOWHERE,) * trie.depth] * (K - len(expected))
    scores = np.asarray(out.scores[b])
    np.testing.assert_allclose(scores[: len(expected)], [s for s, _ in expected], atol=1e-5)
    assert (scores[len(expected) :] == -np.inf).all()


@pytest.mark.parametrize('seed', range(40))
def test_equals_a_slow_search(seed):
  rng, params = np.random.default_rng(seed), tables(seed, V)
  codes = random_codes(rng, int(rng.integers(1, 30)), 3, V)
  trie = ItemTrie.from_ids(codes, capacity=CAPACITY)
  check(search(params, trie), trie, params, codes)


def test_other_items_need_no_other_program():
  before, params = constrained.search._cache_size(), tables(0, V)
  codes = np.unique(np.random.default_rng(1).integers(0, V, (30, 3)), axis=0)
  trie = ItemTrie.from_ids(codes, capacity=CAPACITY)
  for items in (range(len(codes)), [0, 5, 6, 9], [3]):
    few = trie.allowed(items)
    check(search(params, few), few, params, codes[list(items)])
  assert constrained.search._cache_size() <= before + 1


def test_excluded_items_are_never_searched():
  params, codes = tables(5, V), np.unique(np.random.default_rng(2).integers(0, 3, (30, 3)), axis=0)
  trie = ItemTrie.from_ids(codes, capacity=CAPACITY)
  best = trie.items(np.asarray(search(params, trie).leaves)[0])
  excluded = [[i for leaf in best for i in leaf], [], list(range(1, len(codes)))]
  out = search(params, trie, trie.closed(excluded))
  left = [np.delete(codes, np.array(items, int), axis=0) for items in excluded]
  check(out, trie, params, left)
  assert not set(excluded[0]) & {i for leaf in trie.items(np.asarray(out.leaves)[0]) for i in leaf}


def test_a_logit_that_is_no_number_is_told():
  params, codes = tables(0, V), np.array([[1, 2, 3], [1, 2, 4]])
  trie = ItemTrie.from_ids(codes, capacity=CAPACITY)
  spoilt = {**params, 'table': np.full_like(params['table'], np.nan)}
  assert np.asarray(search(params, trie).finite).all() and not np.asarray(search(spoilt, trie).finite).any()


@pytest.mark.slow
def test_drawn_beams_depend_on_the_key_of_their_history_alone():
  params, codes = tables(3, V), np.unique(np.random.default_rng(2).integers(0, V, (30, 3)), axis=0)
  trie = ItemTrie.from_ids(codes, capacity=CAPACITY)
  keys = jax.random.split(jax.random.key(0), 3)
  one, other = (search(params, trie, None, k) for k in (keys, keys[np.array([0, 2, 2])]))
  np.testing.assert_array_equal(one.leaves[np.array([0, 2])], other.leaves[np.array([0, 2])])
  assert (one.leaves[1] != other.leaves[1]).any()
  assert (np.diff(one.scores, axis=1) <= 0).all()  # best first
  assert all(len(set(row)) == K for row in np.asarray(one.leaves).tolist())
