"""What attention in one layer is: its operation, scale, window, prefix, position scheme and sink, as one value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax.numpy as jnp

from jaxlm.config import ModelConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Bool


@struct.dataclass
class AttentionRule:
  """What a cache needs to know of a layer to attend for it. Arrays are the layer's parameters; the rest is static."""

  operation: str = struct.field(pytree_node=False)
  scale: float = struct.field(pytree_node=False)
  softcap: float | None = struct.field(pytree_node=False, default=None)
  causal: bool = struct.field(pytree_node=False, default=True)
  window: int | None = struct.field(pytree_node=False, default=None)
  prefix: int = struct.field(pytree_node=False, default=0)
  power: float = struct.field(pytree_node=False, default=1.0)
  row_sum: float = struct.field(pytree_node=False, default=1.0)
  offset: float = struct.field(pytree_node=False, default=0.0)
  position: str = struct.field(pytree_node=False, default='none')
  dropout: float = struct.field(pytree_node=False, default=0.0)  # rate for the weights; above 0 only in training
  slot_key: Array | None = None  # [K, H]: a key that every query sees, at no position
  slot_value: Array | None = None  # [K, H]; None is 0
  slot_logit: Array | None = None  # [N]: a logit instead of a key
  distance_table: Array | None = None  # [N, 32], of relative_t5
  dropout_key: Array | None = None  # random key; needed where dropout is above 0

  @property
  def has_slot(self) -> bool:
    return self.slot_key is not None or self.slot_logit is not None

  def visible(self, q_positions_BT, k_positions) -> Bool[Array, '...']:
    """Which keys each query may see: not in its future, not before its window; and always the prefix.

    Without `causal` the future is visible as well, and a window reaches as far into it: |distance| < window.

    [B, T, S], or [B, K, T, S] if the keys stand at other positions in each head.
    """
    distance = distances(q_positions_BT, k_positions)
    visible = distance >= 0 if self.causal else jnp.ones_like(distance, bool)
    if self.window is not None:
      visible &= (distance if self.causal else jnp.abs(distance)) < self.window
    return visible | (k_positions < self.prefix)[..., None, :] if self.prefix else visible


def distances(q_positions_BT, k_positions):
  """Returns query minus key position, [B, T, S] or [B, K, T, S] as the keys' positions are [B, S] or [B, K, S]."""
  if k_positions.ndim == 3:
    q_positions_BT = q_positions_BT[:, None]
  return q_positions_BT[..., None] - k_positions[..., None, :]


def layer_rule(config: ModelConfig, layer: int) -> AttentionRule:
  """Returns the static part of a layer's rule."""
  shift = int(config.sink.kind == 'token')
  return AttentionRule(
    operation=config.attention,
    scale=config.query_scale,
    softcap=config.attention_softcap,
    causal=config.causal,
    window=config.window(layer),
    prefix=config.prefix + shift if config.prefix else 0,
    power=config.attention_power,
    row_sum=config.attention_row_sum,
    offset=config.logit_offset,
    position=config.position,
  )
