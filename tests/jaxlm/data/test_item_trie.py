import jax
import numpy as np
import pytest

from jaxlm.data.item_trie import NOWHERE, ItemTrie, TrieCapacity

CODES = [[5, 1, 0], [2, 9, 4], [5, 1, 7], [2, 9, 4], [2, 3, 3], [5, 0, 7], [2, 9, 4]]


@pytest.fixture(scope='module')
def trie() -> ItemTrie:
  return ItemTrie.from_ids(CODES, popularity=[1, 2, 1, 9, 1, 1, 2])


def leaves(trie: ItemTrie, children=None) -> dict[tuple[int, ...], list[int]]:
  """Returns identifier -> items, found by walking from the root."""
  children = trie.children if children is None else children
  found, level = {}, [((), 0)]
  for _ in range(trie.depth):
    nodes = np.array([node for _, node in level])
    tokens, below, mask = map(np.asarray, children(np.pad(nodes, (0, 16 - len(nodes)), constant_values=NOWHERE)))
    assert not mask[len(nodes) :].any()
    level = [
      ((*path, int(t)), int(n))
      for (path, _), row in zip(level, zip(tokens, below, mask))
      for t, n, there in zip(*row)
      if there
    ]
  for (path, _), items in zip(level, trie.items([node for _, node in level])):
    found[path] = items
  return found


def test_walking_the_trie_gives_the_identifiers_back(trie):
  expected = {(2, 3, 3): [4], (2, 9, 4): [3, 1, 6], (5, 0, 7): [5], (5, 1, 0): [0], (5, 1, 7): [2]}
  found = leaves(trie, jax.jit(trie.children))
  assert found == expected and list(found) == sorted(expected)  # by rising token
  assert (trie.num_items, trie.num_ids, trie.num_nodes, trie.largest_token, trie.depth) == (7, 5, 12, 9, 3)
  assert repr(trie) == 'ItemTrie(7 items, 5 identifiers of 3 tokens, 12 nodes)'


def test_nodes_are_numbered_breadth_first(trie):
  parent = np.asarray(trie.parent)[: trie.num_nodes]
  assert parent[0] == NOWHERE and (np.diff(parent) >= 0).all()
  first, count = (np.asarray(x)[: trie.num_nodes] for x in (trie.first_child, trie.child_count))
  for n in range(trie.num_nodes):
    np.testing.assert_array_equal(np.flatnonzero(parent == n), first[n] + np.arange(count[n]))


def test_leaves_give_their_tokens(trie):
  leaf = np.flatnonzero(np.asarray(trie.item_count))
  tokens = trie.tokens(np.append(leaf, NOWHERE).reshape(2, 3))
  assert tokens.shape == (2, 3, 3) and (tokens[-1, -1] == NOWHERE).all()
  for row, items in zip(tokens.reshape(-1, 3)[:-1], trie.items(leaf)):
    assert all(CODES[item] == row.tolist() for item in items)
  assert trie.items([0, NOWHERE]) == [[], []]


@pytest.mark.parametrize('seed', range(3))
def test_random_identifiers_come_back(seed):
  codes = np.random.default_rng(seed).integers(0, 3, (30, 4)) * np.array([[7, 1, 3, 2]])
  trie = ItemTrie.from_ids(codes, capacity=TrieCapacity(100, 40, 5))
  leaf = np.flatnonzero(np.asarray(trie.item_count))
  found = {item: tokens.tolist() for items, tokens in zip(trie.items(leaf), trie.tokens(leaf)) for item in items}
  assert [found[i] for i in range(30)] == codes.tolist()


def test_fewer_allowed_items_need_no_other_program(trie):
  traces = []
  children = jax.jit(lambda trie, nodes: traces.append(0) or trie.children(nodes))
  assert len(leaves(trie, lambda nodes: children(trie, nodes))) == 5
  fewer = trie.allowed([6, 5, 3])
  assert leaves(fewer, lambda nodes: children(fewer, nodes)) == {(2, 9, 4): [3, 6], (5, 0, 7): [5]}
  assert len(traces) == 1 and fewer.capacity == trie.capacity and fewer.num_items == 3
  assert leaves(fewer.allowed([5])) == {(5, 0, 7): [5]}


def test_nodes_with_excluded_items_alone_are_closed(trie):
  closed = trie.closed([{0, 2}, [1, 3, 99, -1], [1, 3, 6, 4, 4], []])
  path = lambda *tokens: next(
    n for n in range(trie.num_nodes) if tuple(t for t in trie.tokens(n).tolist() if t != NOWHERE) == tokens
  )
  assert set(np.flatnonzero(closed[0])) == {path(5, 1), path(5, 1, 0), path(5, 1, 7)}
  assert not closed[1].any() and not closed[3].any()  # item 6 still has the identifier of 1 and 3
  assert set(np.flatnonzero(closed[2])) == {path(2), path(2, 9), path(2, 3), path(2, 9, 4), path(2, 3, 3)}
  assert trie.closed([range(7)])[0, : trie.num_nodes].all()


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda: ItemTrie.from_ids([]), 'no items'),
    (lambda: ItemTrie.from_ids([[1, 2], None]), 'Item 1 has no identifier'),
    (lambda: ItemTrie.from_ids([[1, 2], []]), 'Item 1 has no identifier'),
    (lambda: ItemTrie.from_ids([[1, 2], [1, 2, 3]]), 'Item 1 has 3 tokens and item 0 has 2'),
    (lambda: ItemTrie.from_ids([[1, 2], [1, -2]]), r'Item 1 has the tokens \[1, -2\]'),
    (lambda: ItemTrie.from_ids([[1, 2], [1, 2.5]]), 'expected whole numbers'),
    (lambda: ItemTrie.from_ids(np.zeros(3, int)), 'expected whole numbers'),
    (lambda: ItemTrie.from_ids([[1], [2]], popularity=[1]), 'one number for each of 2 items'),
    (lambda: ItemTrie.from_ids([[1], [2]], capacity=TrieCapacity(3, 2, 1)), 'more than capacity'),
    (lambda: ItemTrie.from_ids(CODES).allowed([7]), 'no item 7'),
    (lambda: ItemTrie.from_ids(CODES).allowed([-1]), 'no item -1'),
    (lambda: ItemTrie.from_ids(CODES).allowed([]), 'No item is allowed'),
    (lambda: ItemTrie.from_ids(CODES).allowed([1]).allowed([2]), 'no item 2'),
    (lambda: ItemTrie.from_ids(CODES).closed([['a']]), 'no list of item numbers'),
  ],
)
def test_bad_input_is_named(change, message):
  with pytest.raises(ValueError, match=message):
    change()
