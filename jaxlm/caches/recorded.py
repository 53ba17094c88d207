"""A cache that records keys and values while a whole sequence is read, for another model that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.full import Sequence
from jaxlm.caches.layered import LayeredCache
from jaxlm.caches.rows import heads_first
from jaxlm.caches.slots import EMPTY, Slots

if TYPE_CHECKING:
  from jaxtyping import Array, Bool


@struct.dataclass
class Recorder:
  """Attends as `Sequence` does, and keeps the keys and values of the layers in `wanted`."""

  sequence: Sequence
  wanted: tuple[int, ...] = struct.field(pytree_node=False)
  keys: tuple[jax.Array, ...] = ()  # [B, T, K, H] of each wanted layer that was computed, in order
  values: tuple[jax.Array, ...] = ()

  @property
  def fresh(self) -> bool:
    return True

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    out, _ = self.sequence.attend(layer, q, k, v, positions, rule)
    if layer not in self.wanted:
      return out, self
    return out, self.replace(keys=(*self.keys, k), values=(*self.values, v))

  def cache(self, num_layers: int, mask: Bool[Array, 'B T'] | None = None) -> LayeredCache:
    """Returns the recorded tokens as a cache to read. Layers that were not recorded are None.

    Args:
      num_layers: number of layers of the model.
      mask: tokens that may be seen (None: all). A model's sink token, which `mask` does not count, may always be seen.
    """
    layers = dict(zip(sorted(set(self.wanted)), zip(self.keys, self.values)))

    def memory(k_BTKH, v_BTKH):
      B, T = k_BTKH.shape[:2]
      positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
      if mask is not None:
        seen_BT = jnp.pad(mask, ((0, 0), (T - mask.shape[1], 0)), constant_values=True)
        positions_BT = jnp.where(seen_BT, positions_BT, EMPTY)
      return Slots(heads_first(k_BTKH), heads_first(v_BTKH), positions_BT, jnp.zeros(B, jnp.int32))

    return LayeredCache(tuple(memory(*layers[i]) if i in layers else None for i in range(num_layers)))
