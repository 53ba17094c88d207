"""The two plain caches: `Sequence` stores nothing (training), `FullCache` stores all keys and values (decoding)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention import banded, cached, flash, pieces
from jaxlm.attention.attend import attend, dot
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import sizes
from jaxlm.caches.rows import heads_first, write_rows
from jaxlm.caches.slots import New, beside
from jaxlm.config import ModelConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Int


@struct.dataclass
class Sequence:
  """A cache that stores nothing: each token sees its own sequence under the rule, and with `segments` only its own document."""

  segments: jax.Array | None = None  # [B, T] int32, equal within a document; 0 is padding

  @property
  def fresh(self) -> bool:
    return True

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    del layer, positions  # Indices replace positions, which restart at document borders within a row.
    T, segments_BT = q.shape[1], self.segments
    # A sink token stands before all documents of its row, and every token sees it.
    first = 0 if segments_BT is None else T - segments_BT.shape[1]
    if flash.is_default(rule, q):
      if first:
        segments_BT = jnp.pad(segments_BT, ((0, 0), (first, 0)), constant_values=flash.SHARED)
      return flash.attend(q, k, v, rule, segments=segments_BT), self
    in_pieces = pieces.is_default(rule, T)
    if first:
      segments_BT = jnp.pad(segments_BT, ((0, 0), (first, 0)))
    elif rule.window is not None and not (in_pieces and pieces.beat_bands(rule, T)):
      return banded.attend(q, k, v, rule, segments_BT), self
    if in_pieces:
      of = lambda at: jnp.asarray(segments_BT)[:, at]
      mask = None if segments_BT is None else (lambda i_C, j_S: same_segment(of(i_C), of(j_S), i_C, j_S, first))
      return pieces.attend(q, k, v, rule, mask), self
    index_T = jnp.arange(T)
    mask_BTS = None if segments_BT is None else same_segment(segments_BT, segments_BT, index_T, index_T, first)
    return attend(q, heads_first(k), heads_first(v), index_T[None], index_T[None], rule, mask_BTS), self


def same_segment(query_BC, key_BS, index_C, index_S, first: int):
  """Returns which keys [B, C, S] are in the query's segment. The tokens before index `first` see all, and all see them."""
  same_BCS = query_BC[:, :, None] == key_BS[:, None, :]
  return same_BCS | ((index_C < first)[:, None] | (index_S < first)[None])[None] if first else same_BCS


@struct.dataclass
class FullCache:
  """All keys and values so far; a token's slot is its position.

  Rows of a batch may have different lengths and padding on the right. No lengths are stored: a padding slot is in the future
  of every real query, which cannot see it, until the real token at this position overwrites it.
  """

  keys: tuple[jax.Array, ...]  # per layer [B, K, S, H]: heads first, so that a decode step reads them without a copy
  values: tuple[jax.Array, ...]  # per layer [B, K, S, H]
  # Per layer, static: whether nothing is written yet; then all rows start at slot 0.
  empty: tuple[bool, ...] = struct.field(pytree_node=False)

  @classmethod
  def create(cls, config: ModelConfig, batch: int, capacity: int, dtype=None) -> 'FullCache':
    """Returns an empty cache with `capacity` slots per row. Raises ValueError for a model that is not causal."""
    config.check_causal('A cache that grows token by token')
    capacity += config.sink.kind == 'token'
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    zeros = lambda: tuple(jnp.zeros(shape, dtype or config.dtype) for _ in range(config.num_layers))
    return cls(keys=zeros(), values=zeros(), empty=(True,) * config.num_layers)

  @property
  def fresh(self) -> bool:
    return self.empty[0]

  @property
  def exact(self) -> bool:
    return True

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  @property
  def whole(self) -> 'FullCache':
    return self

  @property
  def votes(self) -> tuple[None, ...]:
    """Votes per layer (see `jaxlm.caches.voted`); a full cache counts none."""
    return (None,) * len(self.keys)

  def __repr__(self) -> str:
    rows, _, slots, _ = self.keys[0].shape
    return sizes.line(self, f'{len(self.keys)} layers, {rows} rows of {slots} slots')

  def with_valid(self, valid: Bool[Array, 'B T'] | None) -> 'FullCache':
    """Returns the cache itself: it does not need to know which new tokens are padding."""
    del valid
    return self

  def reordered(self, index: Int[Array, ' B']) -> 'FullCache':
    """Returns a cache whose row b is the old row `index[b]`, for beam search."""
    return jax.tree.map(lambda x: x[index], self)

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    k, v = (x.astype(self.keys[layer].dtype) for x in (k, v))
    in_prompt = self.empty[layer]  # The cache holds no older tokens, so attention reads only the new ones.
    out = of_prompt(q, k, v, rule) if in_prompt else None
    k, v = heads_first(k), heads_first(v)
    if in_prompt:
      write = lambda slots, new: jax.lax.dynamic_update_slice(slots, new, (0, 0, 0, 0))
    else:
      write = lambda slots, new: write_rows(slots, new, positions[:, 0])
    keys, values = write(self.keys[layer], k), write(self.values[layer], v)
    replaced = lambda layers, new: layers[:layer] + (new,) + layers[layer + 1 :]
    cache = FullCache(replaced(self.keys, keys), replaced(self.values, values), replaced(self.empty, False))
    return cache.read(layer, q, positions, rule) if out is None else out, cache

  def read(self, layer: int, q, positions, rule: AttentionRule, lengths: Int[Array, ' B'] | None = None):
    """See `jaxlm.caches.protocol.Readable`. Unused slots are hidden by a causal rule or by `lengths`.

    Raises:
      ValueError: the rule is not causal, and there are no lengths.
    """
    if lengths is None and not rule.causal:
      raise ValueError(
        'A full cache does not know which of its slots are used: a rule that is not causal needs `lengths`.'
      )
    if cached.is_default(rule, q):
      return cached.attend(q, self.keys[layer], self.values[layer], positions, rule, lengths=lengths)
    slot_1S = jnp.arange(self.keys[layer].shape[2])[None]
    mask_B1S = None if lengths is None else (slot_1S < lengths[:, None])[:, None]
    return attend(q, self.keys[layer], self.values[layer], positions, slot_1S, rule, mask_B1S)

  def beside(self, layer: int, q, positions, new: New, rule: AttentionRule):
    """Returns the attention of queries over the stored tokens and over `new` tokens, which are not stored."""
    keys, values = self.keys[layer], self.values[layer]
    if cached.is_default(rule, q):
      tokens = cached.tokens(new.keys, new.values, new.positions, new.seen)
      return cached.attend(q, keys, values, positions, rule, lengths=new.positions[:, 0], beside=tokens)
    products = (lambda q: dot(q, keys)), (lambda w: jnp.matmul(w.astype(values.dtype), values).astype(jnp.float32))
    return beside(*products, q, positions, new, jnp.arange(keys.shape[2])[None], rule)

  def appended(self, keys, values, positions, mask) -> 'FullCache':
    """Returns the cache with tokens added to all layers: keys and values per layer [B, T, K, H], positions [B, T] rising by one.

    A row with no token in `mask` [B, T] does not change. Other rows need room for all T tokens: tokens outside `mask` write
    garbage into the next free slots, and later tokens overwrite it.
    """
    write = lambda slots, new: write_rows(
      slots, heads_first(new).astype(slots.dtype), positions[:, 0], mask_B=mask.any(axis=1)
    )
    return FullCache(
      tuple(map(write, self.keys, keys)), tuple(map(write, self.values, values)), (False,) * len(self.keys)
    )


def of_prompt(q, k_BTKH, v_BTKH, rule: AttentionRule):
  """Returns attention of a whole sequence, from its first token on. A long causal one is computed in pieces if it can be."""
  if flash.is_default(rule, q) and q.dtype == k_BTKH.dtype:
    return flash.attend(q, k_BTKH, v_BTKH, rule)
  if pieces.knows(rule) and rule.causal and q.shape[1] >= pieces.SHORTEST:
    return pieces.attend(q, k_BTKH, v_BTKH, rule)
  index_1T = jnp.arange(q.shape[1])[None]
  return attend(q, heads_first(k_BTKH), heads_first(v_BTKH), index_1T, index_1T, rule)
