"""The dense attention that the kernels are held against: the specification, with the [T, S] weights in memory."""

import functools

import jax
import jax.numpy as jnp


def visible(T: int, S: int, causal: bool, window: int | None):
  distance_TS = distances(T, S)
  seen_TS = jnp.ones((T, S), bool)
  if causal:
    seen_TS &= distance_TS >= 0
  if window is not None:
    seen_TS &= abs(distance_TS) < window
  return seen_TS


def distances(T: int, S: int):
  return jnp.arange(T)[:, None] + (S - T) - jnp.arange(S)[None, :]


@functools.partial(jax.jit, static_argnames=('operation', 'causal', 'window', 'scale', 'bias'))
def attention(q, k, v, operation='softmax', causal=True, window=None, scale=None, bias=0.0, alibi_slopes=None):
  """Every step in the inputs' dtype."""
  B, T, N, H = q.shape
  S, K = k.shape[1:3]
  slopes = jnp.zeros((B, N)) if alibi_slopes is None else jnp.broadcast_to(jnp.asarray(alibi_slopes), (B, N))
  penalty_BNTS = slopes[:, :, None, None] * abs(distances(T, S))[None, None]
  return from_penalty(q, k, v, penalty_BNTS - bias, visible(T, S, causal, window), operation, scale)


@functools.partial(jax.jit, static_argnames=('operation', 'scale'))
def from_penalty(q, k, v, penalty_BNTS, seen_TS, operation, scale=None):
  G = q.shape[2] // k.shape[2]
  k, v = jnp.repeat(k, G, axis=2), jnp.repeat(v, G, axis=2)
  scale = q.shape[3] ** -0.5 if scale is None else scale
  logits_BNTS = jnp.einsum('BTNH,BSNH->BNTS', q, k) * scale - penalty_BNTS.astype(q.dtype)
  seen_BNTS = jnp.broadcast_to(seen_TS[None, None], logits_BNTS.shape)
  if operation == 'sigmoid':
    w_BNTS = jnp.where(seen_BNTS, jax.nn.sigmoid(logits_BNTS), 0.0)
  else:
    w_BNTS = jnp.where(seen_BNTS, jax.nn.softmax(jnp.where(seen_BNTS, logits_BNTS, -1e30), axis=-1), 0.0)
  return jnp.einsum('BNTS,BSNH->BTNH', w_BNTS.astype(v.dtype), v)


@functools.partial(jax.jit, static_argnames='attend')
def with_gradients(attend, q, k, v, dout):
  """Returns out, dq, dk, dv."""
  out, vjp = jax.vjp(attend, q, k, v)
  return out, *vjp(dout.astype(out.dtype))
