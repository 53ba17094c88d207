"""Caches whose layers remember differently: each layer its own kind and number of slots.

A `LayeredCache` has one memory per layer, so a program is compiled for each choice of kinds. A `PooledCache` has one array
for all rows of a kind, and data that say which layer and sequence has which rows: one program for every choice with as
many rows of each kind, at the price of a loop over the sequences.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.slots import New, extend


@struct.dataclass
class LayeredCache:
  """One memory per layer: `Slots` or `Packed`."""

  layers: tuple[Any, ...]
  valid: jax.Array | None = None  # [B, T] bool: new tokens that are no padding; None: all

  @property
  def fresh(self) -> bool:
    return False

  @property
  def nbytes(self) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    out, memory = extend(self.layers[layer], q, k, v, positions, rule, self.valid)
    return out, self.replace(layers=self.layers[:layer] + (memory,) + self.layers[layer + 1 :])

  def beside(self, layer: int, q, positions, new: New, rule: AttentionRule):
    """Returns the attention of queries over what is there and over new tokens, which are not."""
    return self.layers[layer].attended_beside(q, positions, new, rule)

  def appended(self, keys, values, positions, mask) -> 'LayeredCache':
    """Adds tokens to all layers: keys and values of each [B, T, K, H], positions, and `mask` [B, T], the tokens to add."""
    added = [m.appended(k, v, positions, mask=mask) for m, k, v in zip(self.layers, keys, values)]
    return self.replace(layers=tuple(added))


@struct.dataclass
class PooledCache:
  """Memories of several kinds, and of which kind and where each layer of each sequence is."""

  pools: tuple[Any, ...]  # of each kind one memory with all its rows
  kind: jax.Array  # [L, B] int32
  row: jax.Array  # [L, B] int32, within the pool
  valid: jax.Array | None = None  # [B, T] bool: new tokens that are no padding; None: all

  @property
  def fresh(self) -> bool:
    return False

  @property
  def nbytes(self) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(self))

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    new = New(k, v, positions)
    if q.shape[1] > 1:
      return self.beside(layer, q, positions, new, rule), self._with(layer, new, self.valid)
    cache = self._with(layer, new, self.valid)  # Written first, the new key needs no place beside the others.
    read = lambda pool, q, positions, row_B: pool.attended(q, positions, rule, row_B)
    return cache._read(layer, read, q, positions), cache

  def beside(self, layer: int, q, positions, new: New, rule: AttentionRule):
    """Returns the attention of queries over what is there and over new tokens, which are not."""
    read = lambda pool, q, positions, new, row_B: pool.attended_beside(q, positions, new, rule, row_B)
    return self._read(layer, read, q, positions, new)

  def appended(self, keys, values, positions, mask) -> 'PooledCache':
    """Adds tokens to all layers: keys and values of each [B, T, K, H], positions, and `mask` [B, T], the tokens to add."""
    cache = self
    for layer, (k, v) in enumerate(zip(keys, values)):
      cache = cache._with(layer, New(k, v, positions), mask)
    return cache

  # Writes are made in all pools and only reads are chosen: arrays that a branch returned changed would be copied.
  def _with(self, layer: int, new: New, valid) -> 'PooledCache':
    def append(i, pool):
      mask = None
      if len(self.pools) > 1:
        mask = jnp.broadcast_to((self.kind[layer] == i)[:, None], new.positions.shape)
      if valid is not None:
        mask = valid if mask is None else mask & valid
      return pool.appended(new.keys, new.values, new.positions, self.row[layer], mask)

    return self.replace(pools=tuple(append(i, pool) for i, pool in enumerate(self.pools)))

  def _read(self, layer: int, read: Callable, *args):
    """Applies `read(pool, *args, rows)` to the pool that each sequence has its row of `layer` in."""
    kind_B, row_B = self.kind[layer], self.row[layer]
    if len(self.pools) == 1:
      return read(self.pools[0], *args, row_B)

    def sequence(b):
      own = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, b, keepdims=True), (*args, row_B))
      return jax.lax.switch(kind_B[b], [functools.partial(read, pool, *own) for pool in self.pools])[0]

    if len(kind_B) == 1:
      return sequence(0)[None]
    return jax.lax.map(sequence, jnp.arange(len(kind_B)))


def reorder(cache: Any, index_B) -> Any:
  """Returns a cache whose row b is what row `index[b]` was, as beams need it.

  The rows of a `PooledCache` that change places must have the same lazy layers, which beams of one prompt have.
  """
  if not isinstance(cache, PooledCache):
    return jax.tree.map(lambda x: x[index_B], cache)

  def pool_of(i, pool):
    rows = len(jax.tree.leaves(pool)[0])
    of_kind_LB = cache.kind == i
    to = jnp.where(of_kind_LB, cache.row, rows).ravel()
    source = jnp.arange(rows).at[to].set(cache.row[:, index_B].ravel(), mode='drop')
    return jax.tree.map(lambda x: x[source], pool)

  return cache.replace(pools=tuple(pool_of(i, pool) for i, pool in enumerate(cache.pools)))


def pooled(kind_LB: np.ndarray, kinds: int, row: Callable[[int, int], Any], done: Callable[[int], None]) -> PooledCache:
  """Builds a pooled cache row by row, so that what a layer was can be let go of before the next one is read.

  Args:
    kind_LB: the kind of each layer of each sequence.
    kinds: how many there are.
    row: (layer, sequence) -> the memory that it keeps, with one row.
    done: called with each layer whose rows have been built.
  """
  L, B = kind_LB.shape
  used = [i for i in range(kinds) if (kind_LB == i).any()]
  kind_LB = np.searchsorted(used, kind_LB)
  pools: list[Any] = [None] * len(used)
  taken, row_LB = [0] * len(used), np.zeros((L, B), np.int32)
  for layer in range(L):
    for b in range(B):
      kind = kind_LB[layer, b]
      memory = row(layer, b)
      if pools[kind] is None:
        rows = int((kind_LB == kind).sum())
        pools[kind] = jax.tree.map(lambda x, rows=rows: jnp.zeros((rows, *x.shape[1:]), x.dtype), memory)
      pools[kind] = _place(pools[kind], memory, jnp.int32(taken[kind]))
      row_LB[layer, b] = taken[kind]
      taken[kind] += 1
    jax.block_until_ready(pools)
    done(layer)
  return PooledCache(tuple(pools), jnp.asarray(kind_LB, jnp.int32), jnp.asarray(row_LB))


@functools.partial(jax.jit, donate_argnums=0)
def _place(pool, memory, at):
  return jax.tree.map(lambda rows, x: jax.lax.dynamic_update_slice_in_dim(rows, x, at, 0), pool, memory)
