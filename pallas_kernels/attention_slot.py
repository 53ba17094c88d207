"""The slot of flash attention: one more logit per query, with an optional value, beside the keys.

It is added outside the kernels. With the kernels' out and lse over the keys alone, for softmax

  lse' = log(exp(lse) + exp(slot))     w = exp(slot - lse')     out' = exp(lse - lse') out + w value

The kernels' backward pass with lse' and delta' = rowsum(dO out') gives the right dQ, dK and dV, and dslot = w (dO value - delta').
For sigmoid the slot only adds sigmoid(slot) value.

Array names carry shapes: B batch, T queries, N query heads, K key heads, G = N/K, H head dim.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.arithmetic import HIDDEN, einsum, softcapped


def logits(spec, q_BTNH, logit_N, key_KH):
  """Returns the slot's float32 logits [B, N, T]: those of its key, or `logit_N` as it is."""
  B, T, N, H = q_BTNH.shape
  if key_KH is None:
    return jnp.broadcast_to(logit_N.astype(jnp.float32)[None, :, None], (B, N, T))
  q_BTKGH = q_BTNH.reshape(B, T, key_KH.shape[0], -1, H)
  logits_BKGT = einsum('BTKGH,KH->BKGT', q_BTKGH, key_KH.astype(q_BTNH.dtype)) * spec.scale
  return (softcapped(logits_BKGT, spec.softcap)[0] + spec.bias).reshape(B, N, T)


def add_to_softmax(out_BTNH, lse_BNT, slot_BNT, value_KH):
  """Returns out and lse with the slot, given those over the keys alone. value: None is 0."""
  # A query that sees no key has lse -HIDDEN, and out 0: the slot has all of its weight.
  lse_BNT = jnp.where(lse_BNT >= -HIDDEN, HIDDEN, lse_BNT)
  total_BNT = jnp.logaddexp(lse_BNT, slot_BNT)
  out = out_BTNH.astype(jnp.float32) * _rows(jnp.exp(lse_BNT - total_BNT))
  if value_KH is not None:
    out = out + _rows(jnp.exp(slot_BNT - total_BNT)) * _by_query_head(value_KH, out_BTNH)
  return out.astype(out_BTNH.dtype), total_BNT


def softmax_gradients(slot_BNT, lse_BNT, delta_BNT, value_KH, dout_BTNH):
  """Returns the gradients of the slot's logits and of its value (None for None). lse and delta: with the slot."""
  w_BNT = jnp.exp(slot_BNT - lse_BNT)
  if value_KH is None:
    return -w_BNT * delta_BNT, None
  B, T, N, H = dout_BTNH.shape
  dout_BTKGH = dout_BTNH.astype(jnp.float32).reshape(B, T, value_KH.shape[0], -1, H)
  dw_BKGT = einsum('BTKGH,KH->BKGT', dout_BTKGH, value_KH.astype(jnp.float32))
  dvalue_KH = einsum('BKGT,BTKGH->KH', w_BNT.reshape(dw_BKGT.shape), dout_BTKGH)
  return w_BNT * (dw_BKGT.reshape(B, N, T) - delta_BNT), dvalue_KH.astype(value_KH.dtype)


def add_to_sigmoid(out_BTNH, slot_BNT, value_KH):
  """Returns out with the slot; it has gradients of its own."""
  added = _rows(jax.nn.sigmoid(slot_BNT)) * _by_query_head(value_KH, out_BTNH)
  return (out_BTNH.astype(jnp.float32) + added).astype(out_BTNH.dtype)


def _rows(x_BNT):
  return x_BNT.swapaxes(1, 2)[..., None]


def _by_query_head(value_KH, like_BTNH):
  """Returns [1, 1, N, H] in float32."""
  return jnp.repeat(value_KH.astype(jnp.float32), like_BTNH.shape[2] // value_KH.shape[0], axis=0)[None, None]
