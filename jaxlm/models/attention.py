"""Attention with a swappable weight function.

  o_t = sum_s w(q_t . k_s / sqrt(H))_s v_s,   w = softmax, or sigmoid without normalisation.

The attention-sink paper (https://arxiv.org/abs/2410.10781) compares the two; everything else in the block is shared.
A new operation is one function from logits and mask to weights, and one entry in OPERATIONS.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlm.config import ModelConfig


def softmax_weights(logits_BKGTS, mask_B11TS):
  # A finite floor keeps fully masked rows (padding) at uniform weights instead of NaN.
  return jax.nn.softmax(jnp.where(mask_B11TS, logits_BKGTS, jnp.finfo(logits_BKGTS.dtype).min), axis=-1)


def sigmoid_weights(logits_BKGTS, mask_B11TS):
  return jnp.where(mask_B11TS, jax.nn.sigmoid(logits_BKGTS), 0.0)


OPERATIONS: dict[str, Callable] = {'softmax': softmax_weights, 'sigmoid': sigmoid_weights}


@dataclasses.dataclass(frozen=True)
class AttentionRule:
  """What a cache needs to know of a layer to attend for it: the operation, its scale, cap and window."""

  operation: str
  scale: float
  softcap: float | None = None
  window: int | None = None

  def visible(self, q_positions_BT, k_positions_BS) -> Bool[Array, 'B T S']:
    """Which keys each query may see: not in its future, not before its window."""
    distance_BTS = q_positions_BT[:, :, None] - k_positions_BS[:, None, :]
    visible_BTS = distance_BTS >= 0
    return visible_BTS if self.window is None else visible_BTS & (distance_BTS < self.window)


def layer_rule(config: ModelConfig, layer: int) -> AttentionRule:
  return AttentionRule(config.attention, config.head_dim**-0.5, config.attention_softcap, config.window(layer))


def attend(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K S H'],
  v: Float[Array, 'B K S H'],
  mask: Bool[Array, 'B T S'],
  rule: AttentionRule,
) -> Float[Array, 'B T N H']:
  """Grouped-query attention over heads-first keys and values; logits and weights are computed in float32."""
  B, T, N, H = q.shape
  K, S = k.shape[1], k.shape[2]
  G = N // K
  # Plain batched products [G T, H] x [H, S] x [S, H]; einsums over all five axes cost more copies on a CPU.
  q_BKRH = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
  logits_BKRS = jnp.einsum('BKRH,BKSH->BKRS', q_BKRH, k, preferred_element_type=jnp.float32)
  logits_BKGTS = logits_BKRS.reshape(B, K, G, T, S) * rule.scale
  if rule.softcap is not None:
    logits_BKGTS = rule.softcap * jnp.tanh(logits_BKGTS / rule.softcap)
  w_BKGTS = OPERATIONS[rule.operation](logits_BKGTS, mask[:, None, None]).astype(v.dtype)
  out_BKRH = jnp.matmul(w_BKGTS.reshape(B, K, G * T, S), v)
  return out_BKRH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
