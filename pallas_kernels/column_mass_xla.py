"""The passes of column_mass_kernels.py in ordinary XLA operations, for platforms without kernels.

A loop computes C queries at a time, so that the [T, S] weights never exist as a whole.

Array names carry shapes: B batch, T queries, C queries of a piece, P pieces, S keys, N query heads, K key heads, G = N/K.
"""

import jax
from jax import lax
import jax.numpy as jnp

from pallas_kernels.arithmetic import HIDDEN, einsum, softcapped
from pallas_kernels.column_mass_kernels import Spec

PIECE_WEIGHTS = 2**20  # Weights of a piece at most, over all rows and heads: 4 MiB, which the cache of a CPU holds.


def call(spec: Spec, q, k, slopes_BN):
  """Returns the two passes, as `column_mass_kernels.call` does."""
  (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
  size = PIECE_WEIGHTS if jax.default_backend() == 'cpu' else 16 * PIECE_WEIGHTS
  C = min(T, max(16, size // (B * N * S)))
  P = -(-T // C)
  q_BRNH = jnp.pad(q, ((0, 0), (0, P * C - T), (0, 0), (0, 0)))
  q_PBCKGH = q_BRNH.reshape(B, P, C, K, N // K, H).swapaxes(0, 1)
  firsts_P = jnp.arange(P) * C

  def logits_of(q_BCKGH, first):
    """Returns the logits [B, N, C, S] and which of them are visible, [C, S]."""
    products = einsum('BCKGH,BSKH->BKGCS', q_BCKGH, k).reshape(B, N, C, S)
    logits, _ = softcapped(spec.scale * products, spec.softcap)
    distance_CS = (first + jnp.arange(C))[:, None] + (S - T) - jnp.arange(S)[None]
    logits = logits + spec.bias
    if spec.alibi:
      logits = logits - slopes_BN[:, :, None, None] * jnp.abs(distance_CS).astype(jnp.float32)[None, None]
    visible_CS = jnp.ones((C, S), bool)
    if spec.causal:
      visible_CS &= distance_CS >= 0
    if spec.window is not None:
      visible_CS &= jnp.abs(distance_CS) < spec.window
    return logits, visible_CS[None, None]

  def rows():
    def total(x):
      logits, visible = logits_of(*x)
      if spec.operation == 'sigmoid':
        return jnp.where(visible, jax.nn.sigmoid(logits), 0.0).sum(axis=-1)
      lse_BNC = jax.nn.logsumexp(jnp.where(visible, logits, HIDDEN), axis=-1)
      return jnp.where(visible.any(axis=-1), lse_BNC, HIDDEN)

    total_PBNC = lax.map(total, (q_PBCKGH, firsts_P))
    return jnp.moveaxis(total_PBNC, 0, 2).reshape(B, N, P * C)[:, :, :T]

  def split(x_BNT, fill: float):
    x = jnp.pad(x_BNT, ((0, 0), (0, 0), (0, P * C - T)), constant_values=fill)
    return jnp.moveaxis(x.reshape(B, N, P, C), 2, 0)

  def columns(lse, factors):
    def add(sums, x):
      q_BCKGH, first, lse_BNC, factors = x
      logits, visible = logits_of(q_BCKGH, first)
      w_BNCS = jax.nn.sigmoid(logits) if lse_BNC is None else jnp.exp(logits - lse_BNC[..., None])
      w_BNCS = jnp.where(visible, w_BNCS, 0.0)
      return [total + (f[..., None] * w_BNCS).sum(axis=2) for total, f in zip(sums, factors)], None

    pieces = q_PBCKGH, firsts_P, None if lse is None else split(lse, -HIDDEN), [split(f, 0.0) for f in factors]
    return lax.scan(add, [jnp.zeros((B, N, S), jnp.float32)] * len(factors), pieces)[0]

  return rows, columns
