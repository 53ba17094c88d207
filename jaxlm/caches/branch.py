"""Drafted tokens or a token tree kept beside a cache that is only read, so that rejecting them costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import sizes
from jaxlm.caches.protocol import Draftable
from jaxlm.caches.slots import New
from jaxlm.config import ModelConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Int


@struct.dataclass
class Branch:
  """A cache and slots for N tokens beside it, filled by any number of calls. `at` and `seen` describe the T tokens of the next call."""

  cache: Draftable
  keys: tuple[jax.Array, ...]  # per layer [B, N, K, H]
  values: tuple[jax.Array, ...]  # per layer [B, N, K, H]
  positions: jax.Array  # [B, N] int32
  at: jax.Array  # [] int32, slot of the first of the T tokens
  seen: jax.Array  # [B, T, N] bool, which of the N tokens each of the T tokens sees

  @classmethod
  def create(cls, cache: Draftable, config: ModelConfig, batch: int, size: int) -> 'Branch':
    shape = (batch, size, config.num_kv_heads, config.head_dim)
    zeros = tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
    seen = jnp.zeros((batch, size, size), bool)
    return cls(cache, zeros, zeros, jnp.zeros((batch, size), jnp.int32), jnp.int32(0), seen)

  @property
  def fresh(self) -> bool:
    return False

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    return sizes.line(self, f'{self.positions.shape[1]} tokens beside {self.cache}')

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    # A hidden token has the weight 0, and 0 times infinity is NaN. So values that are not finite are stored as 0, and only the
    # tokens that see them get NaN outputs: a wrong draft that overflows must not change other branches of the tree.
    lost_BT = ~jnp.isfinite(v).all(axis=(2, 3))
    sees_BTT = jax.lax.dynamic_slice_in_dim(self.seen, self.at, v.shape[1], axis=2)
    spoilt_BT = (sees_BTT & lost_BT[:, None]).any(axis=2)
    v = jnp.where(lost_BT[:, :, None, None], 0, v)
    branch = self.placed(positions).with_layer(layer, self._put(self.keys[layer], k), self._put(self.values[layer], v))
    new = New(branch.keys[layer], branch.values[layer], branch.positions, self.seen)
    out = self.cache.beside(layer, q, positions, new, rule)
    return jnp.where(spoilt_BT[:, :, None, None], jnp.nan, out), branch

  def placed(self, positions) -> 'Branch':
    """Returns the branch with the positions of the next tokens stored."""
    return self.replace(positions=self._put(self.positions, positions))

  def _put(self, old, new):
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), self.at, 1)

  def with_layer(self, layer: int, keys, values) -> 'Branch':
    put = lambda layers, new: layers[:layer] + (new,) + layers[layer + 1 :]
    return self.replace(keys=put(self.keys, keys), values=put(self.values, values))

  def along(self, path: Int[Array, 'B P']) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Returns the keys and the values of all layers, [B, P, K, H], for the token indices `path` of the branch."""
    pick = lambda x: jnp.take_along_axis(x, path[:, :, None, None], axis=1)
    return tuple(map(pick, self.keys)), tuple(map(pick, self.values))
