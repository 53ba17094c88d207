"""The dense attention that the kernels are held against: the specification, with the [T, S] weights in memory.

`attention` computes in the inputs' dtype, and JAX differentiates it. `exact` is NumPy in float64, with the gradients by hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def visible(T: int, S: int, causal: bool, window: int | None, prefix: int = 0):
  distance_TS = distances(T, S)
  seen_TS = np.ones((T, S), bool)
  if causal:
    seen_TS &= distance_TS >= 0
  if window is not None:
    seen_TS &= abs(distance_TS) < window
  return seen_TS | (np.arange(S) < prefix)[None]


def visible_by_row(B: int, T: int, S: int, causal: bool, window: int | None, prefix: int, segments):
  """Returns [B, 1, T, S]."""
  seen_BTS = np.broadcast_to(visible(T, S, causal, window, prefix)[None], (B, T, S))
  if segments is not None:
    a, b = np.asarray(segments)[:, :, None], np.asarray(segments)[:, None]
    seen_BTS = seen_BTS & ((a == b) | (a < 0) | (b < 0))
  return seen_BTS[:, None]


def distances(T: int, S: int):
  return np.arange(T)[:, None] + (S - T) - np.arange(S)[None, :]


def penalties(B: int, N: int, T: int, S: int, causal: bool, alibi_slopes):
  """Returns slope x distance, [B, N, T, S] in float64."""
  slopes = np.zeros((B, N)) if alibi_slopes is None else np.broadcast_to(np.asarray(alibi_slopes, np.float64), (B, N))
  distance_TS = distances(T, S) if causal else abs(distances(T, S))
  return slopes[:, :, None, None] * distance_TS[None, None]


def attention(
  q, k, v, operation='softmax', causal=True, window=None, prefix=0, scale=None, softcap=None, bias=0.0, alibi_slopes=None,
  segments=None, slot_logit=None, slot_key=None, slot_value=None,
):  # fmt: skip
  """Every step in the inputs' dtype."""
  (B, T, N, _), S = q.shape, k.shape[1]
  penalty_BNTS = jnp.asarray(penalties(B, N, T, S, causal, alibi_slopes) - bias, jnp.float32)
  seen_BNTS = jnp.asarray(visible_by_row(B, T, S, causal, window, prefix, segments))
  slots = {'slot_logit': slot_logit, 'slot_key': slot_key, 'slot_value': slot_value, 'bias': bias}
  return from_penalty(q, k, v, penalty_BNTS, seen_BNTS, operation, scale, softcap, **slots)


@functools.partial(jax.jit, static_argnames=('operation', 'scale', 'softcap', 'bias'))
def from_penalty(
  q, k, v, penalty_BNTS, seen_BNTS, operation, scale=None, softcap=None, *,
  slot_logit=None, slot_key=None, slot_value=None, bias=0.0,
):  # fmt: skip
  (B, T, N, H), dtype = q.shape, q.dtype
  by_query_head = lambda x: None if x is None else jnp.repeat(x, N // x.shape[-2], axis=-2).astype(dtype)
  k, v, slot_key, slot_value = map(by_query_head, (k, v, slot_key, slot_value))
  scale = H**-0.5 if scale is None else scale
  cap = lambda x: x if softcap is None else softcap * jnp.tanh(x / softcap)
  logits_BNTS = cap(jnp.einsum('BTNH,BSNH->BNTS', q, k) * scale) - penalty_BNTS.astype(dtype)
  seen_BNTS = jnp.broadcast_to(seen_BNTS, logits_BNTS.shape)
  if slot_key is not None:
    slot_BNT = cap(jnp.einsum('BTNH,NH->BNT', q, slot_key) * scale) + bias
  elif slot_logit is not None:
    slot_BNT = jnp.broadcast_to(slot_logit.astype(dtype)[None, :, None], (B, N, T))
  else:
    slot_BNT = jnp.zeros((B, N, T), dtype)
  logits_BNTS = jnp.concatenate([slot_BNT[..., None], logits_BNTS], axis=-1)
  has_slot = slot_key is not None or slot_logit is not None
  seen_BNTS = jnp.pad(seen_BNTS, ((0, 0),) * 3 + ((1, 0),), constant_values=has_slot)
  if operation == 'sigmoid':
    w_BNTS = jnp.where(seen_BNTS, jax.nn.sigmoid(logits_BNTS), 0.0)
  else:
    w_BNTS = jnp.where(seen_BNTS, jax.nn.softmax(jnp.where(seen_BNTS, logits_BNTS, -1e30), axis=-1), 0.0)
  w_BNTS = w_BNTS.astype(dtype)
  out = jnp.einsum('BNTS,BSNH->BTNH', w_BNTS[..., 1:], v)
  return out if slot_value is None else out + w_BNTS[..., 0].swapaxes(1, 2)[..., None] * slot_value[None, None]


@functools.partial(jax.jit, static_argnames='attend')
def with_gradients(attend, q, k, v, dout):
  """Returns out, dq, dk, dv."""
  return gradients(attend, (q, k, v), dout)


def gradients(attend, arrays, dout):
  """Returns attend(*arrays) and the gradients of all arrays."""
  out, vjp = jax.vjp(attend, *arrays)
  return out, *vjp(dout.astype(out.dtype))


def exact(
  q, k, v, dout, operation='softmax', causal=True, window=None, prefix=0, scale=None, softcap=None, bias=0.0,
  alibi_slopes=None, segments=None, slot_logit=None, slot_key=None, slot_value=None,
):  # fmt: skip
  """Returns out and the gradients of q, k, v, and of those of slot_logit, slot_key and slot_value that are given."""
  as_float64 = lambda x: None if x is None else np.asarray(x, np.float32).astype(np.float64)
  q, k, v, dout, slot_logit, slot_key, slot_value = map(as_float64, (q, k, v, dout, slot_logit, slot_key, slot_value))
  (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
  G, scale = N // K, H**-0.5 if scale is None else scale
  q, k, v, dout = (np.moveaxis(x, 1, 2) for x in (q, k, v, dout))
  k, v = np.repeat(k, G, axis=1), np.repeat(v, G, axis=1)
  # The slot is key 0: a key and a value of 0 if it has none.
  zeros = np.zeros((K, H))
  with_slot = lambda x, slot: np.concatenate(
    [np.repeat(np.broadcast_to(slot, (B, K, H)), G, axis=1)[:, :, None], x], axis=2
  )
  k = with_slot(k, zeros if slot_key is None else slot_key)
  v = with_slot(v, zeros if slot_value is None else slot_value)
  capped = q @ k.swapaxes(2, 3) * scale
  damping = np.ones_like(capped)
  if softcap is not None:
    damping = 1 - np.tanh(capped / softcap) ** 2
    capped = softcap * np.tanh(capped / softcap)
  logits = capped + bias
  logits[..., 1:] -= penalties(B, N, T, S, causal, alibi_slopes)
  if slot_logit is not None:
    logits[..., 0] = slot_logit[None, :, None]
    damping[..., 0] = 0
  has_slot = slot_key is not None or slot_logit is not None
  seen = np.concatenate(
    [np.full((B, 1, T, 1), has_slot), visible_by_row(B, T, S, causal, window, prefix, segments)], axis=-1
  )
  if operation == 'sigmoid':
    w = np.where(seen, 1 / (1 + np.exp(-logits)), 0)
    slope = w * (1 - w)
    dlogits = slope * (dout @ v.swapaxes(2, 3))
  else:
    floor = np.where(seen, logits, -np.inf).max(axis=-1, keepdims=True)
    w = np.where(seen, np.exp(np.minimum(logits - np.where(np.isfinite(floor), floor, 0), 0)), 0)
    w = w / np.maximum(w.sum(axis=-1, keepdims=True), 1e-300)
    dw = dout @ v.swapaxes(2, 3)
    dlogits = w * (dw - (w * dw).sum(axis=-1, keepdims=True))
  dscores = dlogits * damping * scale
  of_group = lambda x: x.reshape(B, K, G, S + 1, H).sum(axis=2)
  dk, dv = of_group(dscores.swapaxes(2, 3) @ q), of_group(w.swapaxes(2, 3) @ dout)
  results = [w @ v, dscores @ k, dk[:, :, 1:], dv[:, :, 1:]]
  results = [np.moveaxis(x, 1, 2) for x in results]
  slots = (slot_logit, dlogits[..., 0].sum(axis=(0, 2))), (slot_key, dk[:, :, 0].sum(axis=0))
  slots += ((slot_value, dv[:, :, 0].sum(axis=0)),)
  return *results, *(gradient for given, gradient in slots if given is not None)
