"""Decode attention in ordinary XLA operations: the definition, with all logits in memory."""

import jax
import jax.numpy as jnp

from pallas_kernels import decoding_kernels as kernels
from pallas_kernels.arithmetic import HIDDEN, einsum
from pallas_kernels.decoding_calls import Codes, Stored


def stored(rule: kernels.Rule, call: Stored) -> tuple[jax.Array, ...]:
  """Returns sums over the stored tokens, float32: out [B, K, R, H], and for softmax top and total [B, K, R, 1]."""
  H = call.q.shape[3]
  keys, values = dequantized(call.keys, True, H, call.q.dtype), dequantized(call.values, False, H)
  if call.rows is not None:
    keys, values = keys[call.rows], values[call.rows]
  slot_11S = jnp.arange(keys.shape[2])[None, None]
  key_positions = slot_11S if call.key_positions is None else call.key_positions
  mask_BK1S = (slot_11S < call.lengths[:, None, None])[:, :, None]
  return sums(rule, call.q, keys, values, call.positions, key_positions, mask_BK1S, call.slopes)


def sums(rule: kernels.Rule, q, keys, values, positions_BR, key_positions_BKS, mask_BKRS, slopes_KR):
  """Returns the same sums for any tokens; in shapes, K and R may be 1 where heads or queries do not differ."""
  distance_BKRS = positions_BR[:, None, :, None] - key_positions_BKS[:, :, None]
  seen_BKRS = kernels.visible(rule, positions_BR[:, None, :, None], key_positions_BKS[:, :, None])
  if mask_BKRS is not None:
    seen_BKRS &= mask_BKRS
  products_BKRS = einsum('BKRH,BKSH->BKRS', q, keys)
  slopes = None if slopes_KR is None else slopes_KR[None, :, :, None]
  logits_BKRS = kernels.scored(rule, products_BKRS, distance_BKRS, slopes)
  mix = lambda w_BKRS: einsum('BKRS,BKSH->BKRH', w_BKRS.astype(values.dtype), values)
  if rule.operation == 'sigmoid':
    return (mix(jnp.where(seen_BKRS, jax.nn.sigmoid(logits_BKRS), 0.0)),)
  top_BKR1 = jnp.max(jnp.where(seen_BKRS, logits_BKRS, HIDDEN), axis=-1, keepdims=True)
  w_BKRS = jnp.where(seen_BKRS, jnp.exp(logits_BKRS - top_BKR1), 0.0)
  return mix(w_BKRS), top_BKR1, w_BKRS.sum(axis=-1, keepdims=True)


def dequantized(x: jax.Array | Codes, is_key: bool, H: int, dtype=None) -> jax.Array:
  """Returns code scale + minimum, [B, K, S, H], in `dtype`, or by default in bfloat16 for bfloat16 scales and float32 for others."""
  if not isinstance(x, Codes):
    return x
  codes, scale, minimum = x if is_key else (y.swapaxes(2, 3) for y in x)
  S, P = codes.shape[2:]
  fields = H // P
  width = 8 // fields
  parts = [(codes >> jnp.uint8(i * width)) & jnp.uint8(2**width - 1) for i in range(fields)]
  channels = jnp.concatenate(parts, axis=-1).astype(jnp.float32)
  times, axis = (S // scale.shape[2], 2) if is_key else (H // scale.shape[3], 3)
  spread = lambda y: jnp.repeat(y.astype(jnp.float32), times, axis=axis)
  dtype = dtype or (jnp.bfloat16 if scale.dtype == jnp.bfloat16 else jnp.float32)
  return (channels * spread(scale) + spread(minimum)).astype(dtype)
