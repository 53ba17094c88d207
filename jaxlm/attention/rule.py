"""AttentionRule: how one layer attends (operation, scale, window, prefix, position scheme and sink), as one value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax.numpy as jnp

from jaxlm.config import ModelConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Bool


@struct.dataclass
class AttentionRule:
  """Everything that a cache needs to compute a layer's attention. Arrays are parameters of the layer; other fields are static."""

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
  implementation: str = struct.field(pytree_node=False, default='default')  # see ModelConfig
  dropout: float = struct.field(pytree_node=False, default=0.0)  # dropout rate of the weights; above 0 only in training
  slot_key: Array | None = None  # [K, H]: an extra key without a position that every query sees
  slot_value: Array | None = None  # [K, H]: value of the extra key; None is 0
  slot_logit: Array | None = None  # [N]: a learned logit per head instead of the extra key
  distance_table: Array | None = None  # [N, 32], for relative_t5
  dropout_key: Array | None = None  # random key; needed if dropout is above 0

  @property
  def has_slot(self) -> bool:
    return self.slot_key is not None or self.slot_logit is not None

  def visible(self, q_positions_BT, k_positions) -> Bool[Array, '...']:
    """Returns which keys each query may see: keys up to its position and within its window, and always the prefix.

    If the rule is not causal, later keys are visible too, and a window extends to both sides: |distance| < window.

    The result is [B, T, S], or [B, K, T, S] if the keys' positions differ by head.
    """
    distance = distances(q_positions_BT, k_positions)
    visible = distance >= 0 if self.causal else jnp.ones_like(distance, bool)
    if self.window is not None:
      visible &= (distance if self.causal else jnp.abs(distance)) < self.window
    return visible | (k_positions < self.prefix)[..., None, :] if self.prefix else visible


def distances(q_positions_BT, k_positions):
  """Returns query minus key position: [B, T, S] for key positions [B, S], or [B, K, T, S] for [B, K, S]."""
  if k_positions.ndim == 3:
    q_positions_BT = q_positions_BT[:, None]
  return q_positions_BT[..., None] - k_positions[..., None, :]


def layer_rule(config: ModelConfig, layer: int) -> AttentionRule:
  """Returns the rule of a layer without its parameters."""
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
    implementation=config.implementation,
  )
