"""Flash attention in ordinary XLA operations, for platforms without kernels. The formulas are those of attention_kernels.py.

A scan computes C queries at a time, so that the [T, S] weights never exist as a whole. The backward pass computes them again.

Array names carry shapes: B batch, C queries of a piece, S keys, N query heads, K key heads, G = N/K, H head dim.
"""

import jax
from jax import lax
import jax.numpy as jnp

from pallas_kernels.arithmetic import HIDDEN, einsum, softcapped
from pallas_kernels.attention_kernels import same_segment

PIECE_WEIGHTS = 2**24  # Largest number of weights in one piece, over all rows and heads: 64 MiB in float32.


def forward(spec, q_BTNH, k_BSKH, v_BSKH, slopes_BN, segments_BT):
  """Returns out [B, T, N, H] and, for softmax, the log-sum-exp [B, N, T]; None for sigmoid."""
  pieces = _pieces(q_BTNH, k_BSKH)

  def one(_, x):
    q_BCKGH, first = x
    logits, visible, _ = _logits(spec, q_BCKGH, k_BSKH, first, q_BTNH.shape[1], slopes_BN, segments_BT)
    lse_BKGC1 = _log_sum_exp(logits, visible) if spec.operation == 'softmax' else None
    w_BKGCS = _weights(logits, visible, lse_BKGC1)
    return None, (einsum('BKGCS,BSKH->BCKGH', w_BKGCS.astype(v_BSKH.dtype), v_BSKH), lse_BKGC1)

  _, (out, lse) = lax.scan(one, None, (pieces.split(q_BTNH), pieces.firsts))
  return pieces.join(out).astype(q_BTNH.dtype), None if lse is None else pieces.join_rows(lse)


def backward(spec, q_BTNH, k_BSKH, v_BSKH, slopes_BN, segments_BT, dout_BTNH, stats):
  """Returns dq, dk, dv. stats: (lse, delta), each [B, N, T], for softmax; () for sigmoid."""
  pieces = _pieces(q_BTNH, k_BSKH)

  def one(sums, x):
    q_BCKGH, dout_BCKGH, first, *rows = x
    logits, visible, capped = _logits(spec, q_BCKGH, k_BSKH, first, q_BTNH.shape[1], slopes_BN, segments_BT)
    w_BKGCS = _weights(logits, visible, rows[0] if rows else None)
    dw_BKGCS = einsum('BCKGH,BSKH->BKGCS', dout_BCKGH, v_BSKH)
    dlogits = w_BKGCS * (dw_BKGCS - rows[1]) if rows else w_BKGCS * (1.0 - w_BKGCS) * dw_BKGCS
    dlogits = (dlogits if capped is None else dlogits * (1.0 - capped * capped)).astype(q_BCKGH.dtype)
    dk_BSKH = einsum('BKGCS,BCKGH->BSKH', dlogits, q_BCKGH)
    dv_BSKH = einsum('BKGCS,BCKGH->BSKH', w_BKGCS.astype(q_BCKGH.dtype), dout_BCKGH)
    return (sums[0] + dk_BSKH, sums[1] + dv_BSKH), einsum('BKGCS,BSKH->BCKGH', dlogits, k_BSKH)

  zeros = jnp.zeros(k_BSKH.shape, jnp.float32)
  rows = [pieces.split_rows(x) for x in stats]
  xs = (pieces.split(q_BTNH), pieces.split(dout_BTNH), pieces.firsts, *rows)
  (dk, dv), dq = lax.scan(one, (zeros, zeros), xs)
  dq = (spec.scale * pieces.join(dq)).astype(q_BTNH.dtype)
  return dq, (spec.scale * dk).astype(k_BSKH.dtype), dv.astype(v_BSKH.dtype)


class _Pieces:
  """Splits T queries into pieces of C for a scan. The last piece is padded with zeros."""

  def __init__(self, T: int, C: int, K: int):
    self.T, self.C, self.K, self.count = T, C, K, -(-T // C)
    self.firsts = jnp.arange(self.count) * C

  def split(self, x_BTNH):
    """Returns [pieces, B, C, K, G, H]."""
    B, T, N, H = x_BTNH.shape
    x = jnp.pad(x_BTNH, ((0, 0), (0, self.count * self.C - T), (0, 0), (0, 0)))
    return x.reshape(B, self.count, self.C, self.K, N // self.K, H).swapaxes(0, 1)

  def join(self, x_PBCKGH):
    P, B, C, K, G, H = x_PBCKGH.shape
    return x_PBCKGH.swapaxes(0, 1).reshape(B, P * C, K * G, H)[:, : self.T]

  def split_rows(self, x_BNT):
    """Returns [pieces, B, K, G, C, 1]."""
    B, N, T = x_BNT.shape
    # The lse of padding rows is huge, so that their weights are 0.
    x = jnp.pad(x_BNT, ((0, 0), (0, 0), (0, self.count * self.C - T)), constant_values=-HIDDEN)
    return jnp.moveaxis(x.reshape(B, self.K, N // self.K, self.count, self.C, 1), 3, 0)

  def join_rows(self, x_PBKGC1):
    P, B, K, G, C, _ = x_PBKGC1.shape
    return jnp.moveaxis(x_PBKGC1[..., 0], 0, 3).reshape(B, K * G, P * C)[:, :, : self.T]


def _pieces(q_BTNH, k_BSKH) -> _Pieces:
  (B, T, N, _), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
  return _Pieces(T, min(T, max(16, PIECE_WEIGHTS // (B * N * S))), K)


def _logits(spec, q_BCKGH, k_BSKH, first, T: int, slopes_BN, segments_BT):
  """Returns float32 logits [B, K, G, C, S], a mask of visible ones that broadcasts, and tanh(x / softcap) or None.

  `first` is the piece's first query.
  """
  (B, C, K, G, _), S = q_BCKGH.shape, k_BSKH.shape[1]
  logits, capped = softcapped(einsum('BCKGH,BSKH->BKGCS', q_BCKGH, k_BSKH) * spec.scale, spec.softcap)
  logits = logits + spec.bias
  distance_CS = (first + jnp.arange(C))[:, None] + (S - T) - jnp.arange(S)[None]
  if spec.alibi:
    distances_CS = (distance_CS if spec.causal else jnp.abs(distance_CS)).astype(jnp.float32)
    logits = logits - slopes_BN.reshape(B, K, G, 1, 1) * distances_CS[None, None, None]
  visible_CS = jnp.ones((C, S), bool)
  if spec.causal:
    visible_CS &= distance_CS >= 0
  if spec.window is not None:
    visible_CS &= jnp.abs(distance_CS) < spec.window
  if spec.prefix:
    visible_CS |= jnp.arange(S)[None] < spec.prefix
  visible = visible_CS[None, None, None]
  if segments_BT is not None:  # Padding queries beyond T take the last segment; their outputs are dropped.
    own_BC = jax.vmap(lambda segments_T: segments_T[jnp.minimum(first + jnp.arange(C), T - 1)])(segments_BT)
    visible = visible & same_segment(own_BC[:, :, None], segments_BT[:, None])[:, None, None]
  return logits, visible, capped


def _log_sum_exp(logits, visible):
  """Returns the log-sum-exp over visible keys. For a row without any it is -HIDDEN, which makes all weights 0."""
  lse = jax.nn.logsumexp(jnp.where(visible, logits, HIDDEN), axis=-1, keepdims=True)
  return jnp.where(visible.any(axis=-1, keepdims=True), lse, -HIDDEN)


def _weights(logits, visible, lse):
  weights = jax.nn.sigmoid(logits) if lse is None else jnp.exp(logits - lse)
  return jnp.where(visible, weights, 0.0)
