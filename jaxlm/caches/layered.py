"""Caches whose layers differ in kind (exact, windowed, quantised) and number of slots.

A `LayeredCache` has one memory per layer, so a program is compiled for each assignment of kinds to layers. A `PooledCache` has
one memory (pool) per kind, and index arrays that say which row of which pool each layer and sequence uses. So one program
serves all assignments with the same number of rows of each kind, at the price of a loop over the sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
import functools
from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import sizes
from jaxlm.caches.slots import New, Slots, extend
from jaxlm.config import ModelConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Int


@struct.dataclass
class LayeredCache:
  """One memory per layer: `Slots` or `Packed`."""

  layers: tuple[Any, ...]
  valid: jax.Array | None = None  # [B, T] bool: new tokens that are not padding; None: all
  fresh: bool = struct.field(pytree_node=False, default=False)  # Whether the model's sink token has not been read yet.

  @classmethod
  def create(cls, config: ModelConfig, batch: int, *, recent: int, initial: int = 0, dtype=None) -> 'LayeredCache':
    """Returns an empty cache that keeps each row's first `initial` and latest `recent` tokens: a `Slots.ring` for each layer.

    Decoding may begin with the first token, without a prefill, and the size in bytes is constant. With `initial` 0 the outputs
    equal those of a full cache of a model with windows=(recent,). The cache can be the carry of a loop, because its structure
    does not change; if the model has a sink token, make a first call before the loop. Raises as `Slots.ring` does.
    """
    ring = lambda: Slots.ring(config, batch, recent=recent, initial=initial, dtype=dtype)
    return cls(tuple(ring() for _ in range(config.num_layers)), fresh=config.sink.kind == 'token')

  @property
  def exact(self) -> bool:
    return all(memory.exact for memory in self.layers)

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    kinds = Counter(type(memory).__name__ for memory in self.layers)
    return sizes.line(self, f'{len(self.layers)} layers: ' + ', '.join(f'{n} {kind}' for kind, n in kinds.items()))

  def with_valid(self, valid: Bool[Array, 'B T'] | None) -> 'LayeredCache':
    """Returns the cache for a call whose tokens outside `valid` are padding; None: there is none."""
    return self.replace(valid=valid)

  def reordered(self, index: Int[Array, ' B']) -> 'LayeredCache':
    """Returns a cache whose row b is what row `index[b]` was, as beams need it."""
    return jax.tree.map(lambda x: x[index], self)

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    out, memory = extend(self.layers[layer], q, k, v, positions, rule, self.valid)
    return out, self.replace(layers=self.layers[:layer] + (memory,) + self.layers[layer + 1 :], fresh=False)

  def read(self, layer: int, q, positions, rule: AttentionRule, lengths: Int[Array, ' B'] | None = None):
    """See `jaxlm.caches.protocol.Readable`."""
    return self.layers[layer].read(q, positions, rule, lengths=lengths)

  def beside(self, layer: int, q, positions, new: New, rule: AttentionRule):
    """Returns the attention of queries over what is there and over new tokens, which are not."""
    return self.layers[layer].attended_beside(q, positions, new, rule)

  def appended(self, keys, values, positions, mask) -> 'LayeredCache':
    """Adds tokens to all layers: keys and values of each [B, T, K, H], positions, and `mask` [B, T], the tokens to add."""
    added = [m.appended(k, v, positions, mask=mask) for m, k, v in zip(self.layers, keys, values)]
    return self.replace(layers=tuple(added), fresh=False)


@struct.dataclass
class PooledCache:
  """One memory per kind, and indices that say which row of which memory belongs to each layer of each sequence."""

  pools: tuple[Any, ...]  # per kind, one memory with all rows of this kind
  kind: jax.Array  # [L, B] int32, index into `pools`
  row: jax.Array  # [L, B] int32, row within the pool
  valid: jax.Array | None = None  # [B, T] bool: new tokens that are not padding; None: all

  @property
  def fresh(self) -> bool:
    return False

  @property
  def exact(self) -> bool:
    return all(pool.exact for pool in self.pools)

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    layers, rows = self.kind.shape
    return sizes.line(self, f'{layers} layers of {rows} rows in {len(self.pools)} pools')

  def with_valid(self, valid: Bool[Array, 'B T'] | None) -> 'PooledCache':
    """Returns the cache for a call whose tokens outside `valid` are padding; None: there is none."""
    return self.replace(valid=valid)

  def reordered(self, index: Int[Array, ' B']) -> 'PooledCache':
    """Returns a cache whose row b is the old row `index[b]`, for beam search.

    Rows that change places must have the same kinds of layers, as the beams of one prompt do.
    """

    def pool_of(i, pool):
      rows = len(jax.tree.leaves(pool)[0])
      to = jnp.where(self.kind == i, self.row, rows).ravel()
      source = jnp.arange(rows).at[to].set(self.row[:, index].ravel(), mode='drop')
      return jax.tree.map(lambda x: x[source], pool)

    return self.replace(pools=tuple(pool_of(i, pool) for i, pool in enumerate(self.pools)))

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    new = New(k, v, positions)
    if q.shape[1] > 1:
      return self.beside(layer, q, positions, new, rule), self._with(layer, new, self.valid)
    # A single token is written before attention, which then reads only the pools.
    cache = self._with(layer, new, self.valid)
    attended = lambda pool, q, positions, row_B: pool.attended(q, positions, rule, row_B)
    return cache._in_pools(layer, attended, q, positions), cache

  def read(self, layer: int, q, positions, rule: AttentionRule, lengths: Int[Array, ' B'] | None = None):
    """See `jaxlm.caches.protocol.Readable`."""
    read = lambda pool, q, positions, lengths, row_B: pool.read(q, positions, rule, row_B, lengths)
    return self._in_pools(layer, read, q, positions, lengths)

  def beside(self, layer: int, q, positions, new: New, rule: AttentionRule):
    """Returns the attention of queries over what is there and over new tokens, which are not."""
    attended = lambda pool, q, positions, new, row_B: pool.attended_beside(q, positions, new, rule, row_B)
    return self._in_pools(layer, attended, q, positions, new)

  def appended(self, keys, values, positions, mask) -> 'PooledCache':
    """Adds tokens to all layers: keys and values of each [B, T, K, H], positions, and `mask` [B, T], the tokens to add."""
    cache = self
    for layer, (k, v) in enumerate(zip(keys, values)):
      cache = cache._with(layer, New(k, v, positions), mask)
    return cache

  # Writes go to all pools (with a mask), and only reads are inside a conditional: XLA would copy arrays that a branch changes.
  def _with(self, layer: int, new: New, valid) -> 'PooledCache':
    def append(i, pool):
      mask = None
      if len(self.pools) > 1:
        mask = jnp.broadcast_to((self.kind[layer] == i)[:, None], new.positions.shape)
      if valid is not None:
        mask = valid if mask is None else mask & valid
      return pool.appended(new.keys, new.values, new.positions, self.row[layer], mask)

    return self.replace(pools=tuple(append(i, pool) for i, pool in enumerate(self.pools)))

  def _in_pools(self, layer: int, read: Callable, *args):
    """Applies `read(pool, *args, rows)`, for each sequence, to the pool that holds its row of `layer`."""
    kind_B, row_B = self.kind[layer], self.row[layer]
    if len(self.pools) == 1:
      return read(self.pools[0], *args, row_B)

    def sequence(b):
      own = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, b, keepdims=True), (*args, row_B))
      return jax.lax.switch(kind_B[b], [functools.partial(read, pool, *own) for pool in self.pools])[0]

    if len(kind_B) == 1:
      return sequence(0)[None]
    return jax.lax.map(sequence, jnp.arange(len(kind_B)))


def pooled(kind_LB: np.ndarray, kinds: int, row: Callable[[int, int], Any], done: Callable[[int], None]) -> PooledCache:
  """Builds a pooled cache layer by layer, so that the caller can free each layer's old cache before the next one is built.

  Args:
    kind_LB: the kind of each layer of each sequence.
    kinds: number of kinds.
    row: maps (layer, sequence) to its memory, which has one row.
    done: called with the index of each layer when its rows are built.
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
