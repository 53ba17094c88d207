"""Keys and values of the beams of a search, which change places without a copy of what they remember."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention.attend import attend_by
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import sizes
from jaxlm.caches.rows import heads_first, write_rows
from jaxlm.config import ModelConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Int


@struct.dataclass
class Beams:
  """All keys and values of W beams for each of B sources. Row r of R = B W is beam r % W of source r // W.

  The beams of a source write into slots side by side: slot S W + w holds what row w read at position S. Slots never move. A beam
  that takes the place of another takes over which slots its history is in, and attention reads the slots of all beams of a source
  with a mask. So a step reads the cache once, where a cache of R rows would be copied at every step.
  """

  # Keys are transposed: XLA's CPU backend multiplies few queries by 256 keys [C, H] seven times slower than by [H, C].
  keys: tuple[jax.Array, ...]  # per layer [B, K, H, C], C = capacity * W
  values: tuple[jax.Array, ...]  # per layer [B, K, C, H]
  history: jax.Array  # [B, W, C] bool: the slots that hold the tokens of each beam

  @classmethod
  def create(cls, config: ModelConfig, sources: int, width: int, capacity: int, dtype=None) -> 'Beams':
    """Returns an empty cache with room for `capacity` tokens of each beam.

    Raises:
      ValueError: the model is not causal, or has a sink token, which would be read before the first token.
    """
    config.check_causal('A cache that grows token by token')
    if config.sink.kind == 'token':
      raise ValueError("A cache of beams begins with the first token; this model has a sink token (sink.kind='token').")
    B, K, H, C = sources, config.num_kv_heads, config.head_dim, capacity * width
    zeros = lambda *shape: tuple(jnp.zeros((B, K, *shape), dtype or config.dtype) for _ in range(config.num_layers))
    return cls(zeros(H, C), zeros(C, H), jnp.zeros((B, width, C), bool))

  @property
  def fresh(self) -> bool:
    return False

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    B, W, C = self.history.shape
    return sizes.line(self, f'{len(self.keys)} layers, {B} x {W} beams of {C // W} slots')

  def reordered(self, index: Int[Array, ' R']) -> 'Beams':
    """Returns a cache whose row r is the old row `index[r]`, which is a beam of the same source."""
    B, W, C = self.history.shape
    return self.replace(history=self.history.reshape(B * W, C)[index].reshape(B, W, C))

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    """See `jaxlm.caches.protocol.Cache`. Each row has one new token, and all beams of a source are at the same position.

    Raises:
      ValueError: more than one token a row.
    """
    if q.shape[1] != 1:
      raise ValueError(
        f'A cache of beams is extended by one token a row, not by {q.shape[1]}: call the model token by token.'
      )
    B, W, C = self.history.shape
    of_source = lambda x: x.reshape(B, W, *x.shape[2:])
    q_BWNH, k_BWKH, v_BWKH, positions_BW = map(of_source, (q, k, v, positions))
    first_B = positions_BW[:, 0] * W
    new_BWC = jnp.arange(C)[None, None] == first_B[:, None, None] + jnp.arange(W)[None, :, None]
    history_BWC = self.history | new_BWC
    keys = write_rows(self.keys[layer], k_BWKH.transpose(0, 2, 3, 1).astype(self.keys[layer].dtype), first_B, axis=3)
    values = write_rows(self.values[layer], heads_first(v_BWKH).astype(self.values[layer].dtype), first_B)
    score = lambda q: jnp.matmul(q, keys, preferred_element_type=jnp.float32)
    mix = lambda w: jnp.matmul(w.astype(values.dtype), values)
    slot_positions_1C = jnp.arange(C)[None] // W
    out_BWNH = attend_by(score, mix, q_BWNH, keys.shape[1], positions_BW, slot_positions_1C, rule, history_BWC)
    replaced = lambda layers, new: layers[:layer] + (new,) + layers[layer + 1 :]
    return out_BWNH.reshape(q.shape), Beams(replaced(self.keys, keys), replaced(self.values, values), history_BWC)
