"""The two plain memories: none beyond the sequence itself (training), and every key and value so far (decoding)."""

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.caches.rows import heads_first, write_rows
from jaxlm.config import ModelConfig
from jaxlm.models.attention import AttentionRule, attend


@struct.dataclass
class Sequence:
  """No memory: each token sees its own sequence up to itself, and with `segments` only its own document."""

  segments: jax.Array | None = None  # [B, T] int32, equal within a document; 0 is padding

  @property
  def fresh(self) -> bool:
    return True

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    del layer, positions  # Within a row, order is index: positions restart at document borders.
    index_1T, mask_BTS = jnp.arange(q.shape[1])[None], None
    if self.segments is not None:
      segments_BT = self.segments
      mask_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
      if (before := q.shape[1] - segments_BT.shape[1]) > 0:  # A sink token stands before all documents of its row.
        mask_BTS = jnp.pad(mask_BTS, ((0, 0), (before, 0), (before, 0)), constant_values=True)
    return attend(q, heads_first(k), heads_first(v), index_1T, index_1T, rule, mask_BTS), self


@struct.dataclass
class FullCache:
  """Every key and value so far; the slot of a token is its position.

  Rows of a batch may have different lengths, padded on the right: a padding slot lies in the future of every real
  query until the real token of that position overwrites it, so no lengths are kept here.
  """

  keys: tuple[jax.Array, ...]  # per layer [B, K, S, H]: heads first, so that a decode step reads them without a copy
  values: tuple[jax.Array, ...]  # per layer [B, K, S, H]
  # Per layer, static: whether nothing is written yet, so that all rows start at slot 0.
  empty: tuple[bool, ...] = struct.field(pytree_node=False)

  @classmethod
  def create(cls, config: ModelConfig, batch: int, capacity: int, dtype=None) -> 'FullCache':
    """Returns an empty cache with `capacity` slots per row."""
    capacity += config.sink.kind == 'token'
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    zeros = lambda: tuple(jnp.zeros(shape, dtype or config.dtype) for _ in range(config.num_layers))
    return cls(keys=zeros(), values=zeros(), empty=(True,) * config.num_layers)

  @property
  def fresh(self) -> bool:
    return self.empty[0]

  @property
  def nbytes(self) -> int:
    return sum(x.nbytes for x in self.keys + self.values)

  @property
  def whole(self) -> 'FullCache':
    return self

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    k, v = (heads_first(x).astype(self.keys[layer].dtype) for x in (k, v))
    if self.empty[layer]:  # Prefill: the new tokens are all there is, so unused slots need not be read.
      write = lambda slots, new: jax.lax.dynamic_update_slice(slots, new, (0, 0, 0, 0))
      out = in_order(q, k, v, rule)
      keys, values = write(self.keys[layer], k), write(self.values[layer], v)
    else:
      keys, values = (
        write_rows(slots, new, positions[:, 0]) for slots, new in ((self.keys[layer], k), (self.values[layer], v))
      )
      slot_1S = jnp.arange(keys.shape[2])[None]
      out = attend(q, keys, values, positions, slot_1S, rule)
    replaced = lambda layers, new: layers[:layer] + (new,) + layers[layer + 1 :]
    return out, FullCache(replaced(self.keys, keys), replaced(self.values, values), replaced(self.empty, False))


def in_order(q, k_BKTH, v_BKTH, rule: AttentionRule):
  """Causal attention of a sequence from its first token on.

  A long one is taken in pieces, each over the keys up to its end: half the work, and an eighth of the memory.
  """
  T, pieces = q.shape[1], 8
  index_1T = jnp.arange(T)[None]
  if T < 1024:
    return attend(q, k_BKTH, v_BKTH, index_1T, index_1T, rule)
  size, out = -(-T // pieces), []
  for start in range(0, T, size):
    at = slice(start, min(start + size, T))
    seen = slice(max(at.stop, rule.prefix))
    out.append(attend(q[:, at], k_BKTH[:, :, seen], v_BKTH[:, :, seen], index_1T[:, at], index_1T[:, seen], rule))
  return jnp.concatenate(out, axis=1)
