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

from jaxlm.caches.slots import extend
from jaxlm.models.attention import AttentionRule


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
    kind_B, row_B = self.kind[layer], self.row[layer]

    # Writes are made in all pools and only reads are chosen: arrays that a branch returned changed would be copied.
    def append(i, pool):
      here = None if len(self.pools) == 1 else jnp.broadcast_to((kind_B == i)[:, None], positions.shape)
      if self.valid is not None:
        here = self.valid if here is None else here & self.valid
      return pool.appended(k, v, positions, row_B, here)

    appended = tuple(append(i, pool) for i, pool in enumerate(self.pools))
    one = q.shape[1] == 1  # Written first, the new key needs no place beside the others.
    pools = appended if one else self.pools

    def read(pool, q, k, v, positions, row_B):
      if one:
        return pool.attended(q, positions, rule, row_B)
      return pool.attended_beside(q, k, v, positions, rule, row_B)

    def sequence(b):
      new = [jax.lax.dynamic_index_in_dim(x, b, keepdims=True) for x in (q, k, v, positions, row_B)]
      return jax.lax.switch(kind_B[b], [functools.partial(read, pool, *new) for pool in pools])[0]

    if len(pools) == 1:
      out = read(pools[0], q, k, v, positions, row_B)
    elif len(q) == 1:
      out = sequence(0)[None]
    else:
      out = jax.lax.map(sequence, jnp.arange(len(q)))
    return out, self.replace(pools=appended)


def reorder(cache: Any, index_B) -> Any:
  """Returns a cache whose row b is what row `index[b]` was, as beams need it.

  The rows of a `PooledCache` that change places must have the same lazy layers, which beams of one prompt have.
  """
  if not isinstance(cache, PooledCache):
    return jax.tree.map(lambda x: x[index_B], cache)

  def pool_of(i, pool):
    rows = len(jax.tree.leaves(pool)[0])
    here_LB = cache.kind == i
    to = jnp.where(here_LB, cache.row, rows).ravel()
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
