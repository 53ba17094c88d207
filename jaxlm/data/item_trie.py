"""The identifiers of a catalogue's items as a prefix tree in arrays, so that a search generates only identifiers that exist.

An item is identified by L tokens. A node stands for a prefix of identifiers, and a leaf for a whole one. Nodes are numbered breadth
first from the root, 0; the children of a node are numbered in a row, by rising token. Several items may share an identifier: a
leaf has a list of items. All arrays have the size of a capacity, so that a program compiled for one catalogue serves another.

Letters: C capacity in nodes, P capacity in items, M largest number of children, I items, L tokens of an identifier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
import dataclasses
import functools
from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import shown
from jaxlm.lengths import bucket

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Int

NOWHERE = -1
"""Stands for no node, no token and no item. It has no children."""


@dataclasses.dataclass(frozen=True)
class TrieCapacity:
  """Largest sizes of a trie. Programs are compiled for a capacity and a depth, whatever the items."""

  nodes: int
  """Number of nodes, the root included."""
  items: int
  """Number of items."""
  fan_out: int
  """Number of children of one node."""

  def rounded(self) -> 'TrieCapacity':
    """Returns the sizes rounded up by at most a quarter, or to 16, which leaves room for changes of the catalogue."""
    return TrieCapacity(*map(bucket, dataclasses.astuple(self)))


@struct.dataclass
class ItemTrie:
  """A prefix tree of items. A pytree of int32 arrays; unused places hold `NOWHERE`, or 0 where they count."""

  first_child: jax.Array  # [C]
  child_count: jax.Array  # [C]
  token: jax.Array  # [C], the token that leads to the node
  parent: jax.Array  # [C]
  first_item: jax.Array  # [C], where the items of a leaf begin in `listed`
  item_count: jax.Array  # [C], 0 for inner nodes
  listed: jax.Array  # [P], the items of all leaves in turn
  depth: int = struct.field(pytree_node=False)  # L
  fan_out: int = struct.field(pytree_node=False)  # M

  @classmethod
  def from_ids(
    cls,
    codes: Int[Array, 'I L'] | Sequence[Sequence[int]],
    popularity: Sequence[float] | None = None,
    capacity: TrieCapacity | None = None,
  ) -> 'ItemTrie':
    """Returns the trie of the items 0 .. I - 1.

    Args:
      codes: the identifier of each item, as ids of the model's vocabulary.
      popularity: [I], any numbers: items that share an identifier come in falling order of them; None: in the order of items.
      capacity: sizes of the arrays, such as those of another trie; None: those of the items, rounded up.

    Raises:
      ValueError: there are no items, an item has no identifier, identifiers have different lengths, a token is no whole number or
        negative, `popularity` has another length, or the capacity is too small.
    """
    codes = _checked(codes)
    items = np.arange(len(codes))
    if popularity is not None:
      popularity = np.asarray(popularity, np.float64)
      if popularity.shape != items.shape or np.isnan(popularity).any():
        raise ValueError(
          f'`popularity` has shape {popularity.shape}; expected one number for each of {len(items)} items.'
        )
      items = np.argsort(-popularity, kind='stable')
    return _built(codes[items], items, capacity)

  def allowed(self, items: Collection[int] | Int[Array, ' n']) -> 'ItemTrie':
    """Returns the trie of these items alone, under their old numbers and with the same capacity: programs serve both.

    Raises:
      ValueError: there are no items, or the trie has no such item.
    """
    items = item_numbers(items)
    if not len(items):
      raise ValueError('No item is allowed: name at least one.')
    if len(unknown := np.setdiff1d(items, self._pairs[1])):
      raise ValueError(f'The trie has no item {unknown[0]}, which is among the allowed items.')
    leaf_P, listed_P = self._pairs
    keep_P = np.isin(listed_P, items)
    return _built(self.tokens(leaf_P[keep_P]), listed_P[keep_P], self.capacity)

  def closed(self, excluded: Sequence[Collection[int]]) -> Bool[np.ndarray, 'B C']:
    """Returns the nodes that lead only to excluded items, for each row of item numbers. Numbers that are no items have no effect.

    Raises:
      ValueError: `excluded` holds something else than whole numbers.
    """
    closed = np.zeros((len(excluded), len(self.token)), bool)
    for row, items in zip(closed, excluded):
      items = np.intersect1d(item_numbers(items), self._pairs[1])
      node_n, gone_C = self._leaf_of_item[items], np.zeros(len(row), np.int32)
      for _ in range(self.depth + 1):
        np.add.at(gone_C, node_n, 1)
        row[node_n] = gone_C[node_n] == self._items_below[node_n]
        node_n = np.asarray(self.parent)[node_n]
    return closed

  @property
  def capacity(self) -> TrieCapacity:
    return TrieCapacity(self.token.shape[-1], self.listed.shape[-1], self.fan_out)

  @property
  def num_items(self) -> int:
    return int(np.asarray(self.item_count).sum())

  @property
  def num_ids(self) -> int:
    """Number of identifiers: less than the number of items if some share one."""
    return int((np.asarray(self.item_count) > 0).sum())

  @property
  def num_nodes(self) -> int:
    """Number of nodes, the root included."""
    return 1 + int((np.asarray(self.parent) != NOWHERE).sum())

  @property
  def largest_token(self) -> int:
    return int(np.asarray(self.token).max())

  @functools.cached_property
  def some_identifiers(self) -> list[tuple[int, ...]]:
    """256 identifiers, evenly spaced, or all if there are fewer."""
    leaves = np.flatnonzero(np.asarray(self.item_count))
    some = leaves[np.linspace(0, len(leaves) - 1, min(len(leaves), 256)).astype(int)]
    return list(map(tuple, self.tokens(some).tolist()))

  def __repr__(self) -> str:
    return (
      f'ItemTrie({self.num_items} items, {self.num_ids} identifiers of {self.depth} tokens, {self.num_nodes} nodes)'
    )

  def children(self, nodes: Int[Array, '...']) -> tuple[Int[Array, '... M'], Int[Array, '... M'], Bool[Array, '... M']]:
    """Returns (tokens, nodes, mask) of the children of each node, by rising token. `NOWHERE` has none. Runs under jit."""
    slot_M = jnp.arange(self.fan_out, dtype=jnp.int32).reshape((1,) * nodes.ndim + (-1,))
    at = jnp.maximum(nodes, 0)
    count = jnp.where(nodes >= 0, self.child_count[at], 0)
    mask = slot_M < count[..., None]
    child = jnp.where(mask, self.first_child[at][..., None] + slot_M, NOWHERE)
    return jnp.where(mask, self.token[child], 0), child, mask

  def items(self, nodes: Sequence[int] | Int[Array, ' n']) -> list[list[int]]:
    """Returns the items of each leaf, the most popular first; of `NOWHERE` and of inner nodes none. On the host."""
    first_C, count_C, listed_P = map(np.asarray, (self.first_item, self.item_count, self.listed))
    return [listed_P[first_C[n] : first_C[n] + count_C[n]].tolist() if n >= 0 else [] for n in np.asarray(nodes)]

  def tokens(self, nodes: Int[Array, '...']) -> Int[np.ndarray, '... L']:
    """Returns the tokens from the root to each leaf; for `NOWHERE` all are `NOWHERE`. On the host."""
    node = np.asarray(nodes)
    found = np.full((*node.shape, self.depth), NOWHERE, np.int32)
    for t in reversed(range(self.depth)):
      there = node >= 0
      found[..., t] = np.where(there, np.asarray(self.token)[node], NOWHERE)
      node = np.where(there, np.asarray(self.parent)[node], NOWHERE)
    return found

  @functools.cached_property
  def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
    """(leaf, item) of every item, leaf by leaf."""
    count_C = np.asarray(self.item_count)
    return np.repeat(np.arange(len(count_C)), count_C), np.asarray(self.listed)[: count_C.sum()]

  @functools.cached_property
  def _leaf_of_item(self) -> np.ndarray:
    """[largest item + 1]; of numbers that are no items, `NOWHERE`."""
    leaf_P, listed_P = self._pairs
    found = np.full(listed_P.max() + 1, NOWHERE)
    found[listed_P] = leaf_P
    return found

  @functools.cached_property
  def _items_below(self) -> np.ndarray:
    """[C], the number of items that each node leads to."""
    found, node_P = np.zeros(len(self.token), np.int32), self._pairs[0]
    for _ in range(self.depth + 1):
      np.add.at(found, node_P, 1)
      node_P = np.asarray(self.parent)[node_P]
    return found


def item_numbers(items: Collection[int] | Int[Array, ' n']) -> np.ndarray:
  """Returns item numbers as an array, each once, in rising order. Raises ValueError for what is no list of whole numbers."""
  if not isinstance(items, (np.ndarray, jax.Array)):
    items = list(items) if isinstance(items, Iterable) else items
  items = np.asarray(items)
  if items.ndim != 1 or (items.size and not np.issubdtype(items.dtype, np.integer)):
    raise ValueError(f'{shown(items.tolist())} is no list of item numbers.')
  return np.unique(items.astype(np.int64))


def _checked(codes) -> np.ndarray:
  """Returns identifiers as an array [I, L]."""
  if not len(codes):
    raise ValueError('There are no items: a trie needs at least one.')
  if not isinstance(codes, (np.ndarray, jax.Array)):
    lengths = [0 if row is None else len(row) for row in codes]
    for i, n in enumerate(lengths):
      if not n:
        raise ValueError(f'Item {i} has no identifier. Give it one, or leave the item out of the catalogue.')
      if n != lengths[0]:
        raise ValueError(f'Item {i} has {n} tokens and item 0 has {lengths[0]}: all identifiers need the same length.')
  codes = np.asarray(codes)
  if codes.ndim != 2 or not codes.shape[1] or not np.issubdtype(codes.dtype, np.integer):
    raise ValueError(
      f'`codes` has shape {codes.shape} and dtype {codes.dtype}; expected whole numbers [items, tokens].'
    )
  if codes.min() < 0 or codes.max() >= 2**31:
    i = int(np.argmax(((codes < 0) | (codes >= 2**31)).any(axis=1)))
    raise ValueError(f'Item {i} has the tokens {codes[i].tolist()}; expected ids of a vocabulary, 0 or more.')
  return codes.astype(np.int64)


def _built(codes_IL: np.ndarray, items_I: np.ndarray, capacity: TrieCapacity | None) -> ItemTrie:
  """Returns the trie of items in order of preference."""
  base, depth = int(codes_IL.max()) + 1, codes_IL.shape[1]
  node_I, tokens, parents, first = np.zeros(len(codes_IL), np.int64), [[NOWHERE]], [[NOWHERE]], 1
  for t in range(depth):
    # Sorting by parent, then token, numbers the nodes breadth first.
    edges, rank_I = np.unique(node_I * base + codes_IL[:, t], return_inverse=True)
    parents.append(edges // base)
    tokens.append(edges % base)
    node_I, first = first + rank_I.reshape(-1), first + len(edges)
  token, parent = np.concatenate(tokens), np.concatenate(parents)
  counts = np.bincount(parent[1:], minlength=len(parent))
  need = TrieCapacity(len(token), len(items_I), int(counts.max()))
  capacity = need.rounded() if capacity is None else capacity
  if any(n > c for n, c in zip(dataclasses.astuple(need), dataclasses.astuple(capacity))):
    raise ValueError(f'The items need {need}, more than {capacity=}: pass a larger one, or None.')
  item_count = np.bincount(node_I, minlength=len(token))
  array = lambda x, size, fill: jnp.asarray(np.pad(x, (0, size - len(x)), constant_values=fill).astype(np.int32))
  of_node = lambda x, fill=0: array(x, capacity.nodes, fill)
  before = lambda counts: np.cumsum(counts) - counts
  return ItemTrie(
    first_child=of_node(1 + before(counts)), child_count=of_node(counts), token=of_node(token, NOWHERE),
    parent=of_node(parent, NOWHERE), first_item=of_node(before(item_count)), item_count=of_node(item_count),
    listed=array(items_I[np.argsort(node_I, kind='stable')], capacity.items, NOWHERE), depth=depth, fan_out=capacity.fan_out,
  )  # fmt: skip
