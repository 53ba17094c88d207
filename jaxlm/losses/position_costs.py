"""Costs of all positions for all targets, which the order-agnostic losses match.

  C_ij = -log p_i(y_j) = log Z_i - z_i[y_j],   Z_i = sum_v exp z_i[v],   mean_i = (1 / V) sum_v -log p_i(v)

From hidden states, z_i[y_j] = cap(h_i . W[:, y_j]) is a product with the columns of the targets alone, and log Z_i and the mean of
z_i are computed in pieces of the vocabulary, again in the backward pass, so that no array has the size of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.losses.cross_entropy import slice_logits

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


class PositionCosts(NamedTuple):
  """Both in float32."""

  nll: jax.Array  # [B, T, T]: -log p_i(y_j) of position i and target j
  mean_nll: jax.Array  # [B, T]: the mean of -log p_i over the vocabulary, for label smoothing


def position_costs(logits: Float[Array, 'B T V'], targets: Int[Array, 'B T']) -> PositionCosts:
  """Returns the costs from logits of any float dtype.

  Raises:
    ValueError: there are not as many positions as targets.
  """
  _check_lengths('logits', logits, targets)
  logits = logits.astype(jnp.float32)
  log_z_BT = jax.nn.logsumexp(logits, axis=-1)
  B, T, _ = logits.shape
  targets_BTT = jnp.broadcast_to(targets[:, None, :], (B, T, T))
  logits_BTT = jnp.take_along_axis(logits, targets_BTT, axis=2, mode='clip')
  return PositionCosts(log_z_BT[..., None] - logits_BTT, log_z_BT - jnp.mean(logits, axis=-1))


def chunked_position_costs(
  hidden: Float[Array, 'B T D'],
  output_matrix: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  vocab_chunk: int | None = None,
  softcap: float | None = None,
) -> PositionCosts:
  """Returns `position_costs(cap(hidden @ output_matrix), targets)`, with little memory.

  Args:
    hidden: states after the final norm; products are computed in their dtype, sums in float32. For an output bias, append a
      feature that is 1 to them, and the bias to the matrix.
    output_matrix: usually float32 parameters; cast to hidden's dtype.
    targets: token ids.
    vocab_chunk: number of tokens of the vocabulary whose logits are computed at once; None: chosen by size.
    softcap: logits become softcap * tanh(logits / softcap).

  Raises:
    ValueError: shapes that do not fit together, or a vocab_chunk below 1.
  """
  _check_lengths('hidden', hidden, targets)
  if hidden.shape[-1] != output_matrix.shape[0]:
    raise ValueError(f'hidden {hidden.shape} does not fit matrix {output_matrix.shape}: expected [B, T, D] and [D, V].')
  if vocab_chunk is not None and vocab_chunk < 1:
    raise ValueError(f'{vocab_chunk=} must be at least 1, or None (by size).')
  (B, T, D), V = hidden.shape, output_matrix.shape[1]
  w_DV = output_matrix.astype(hidden.dtype)
  C = min(V, vocab_chunk or max(1, slice_logits() // max(1, B * T)))
  steps = -(-V // C)
  cap = lambda raw: raw if softcap is None else softcap * jnp.tanh(raw / softcap)

  @jax.checkpoint
  def one_piece(w_DC, first):
    logits_BTC = cap(jnp.einsum('BTD,DC->BTC', hidden, w_DC, preferred_element_type=jnp.float32))
    is_token = (first + jnp.arange(C) < V)[None, None]
    log_z_BT = jax.nn.logsumexp(jnp.where(is_token, logits_BTC, -jnp.inf), axis=-1)
    return log_z_BT, jnp.sum(jnp.where(is_token, logits_BTC, 0.0), axis=-1)

  pieces = jnp.pad(w_DV, ((0, 0), (0, steps * C - V))).reshape(D, steps, C).swapaxes(0, 1)
  log_z, sums = jax.lax.map(lambda xs: one_piece(*xs), (pieces, C * jnp.arange(steps)))
  log_z_BT = jax.nn.logsumexp(log_z, axis=0)
  w_BTD = jnp.take(w_DV, targets, axis=1, mode='clip').transpose(1, 2, 0)
  logits_BTS = cap(jnp.einsum('BTD,BSD->BTS', hidden, w_BTD, preferred_element_type=jnp.float32))
  return PositionCosts(log_z_BT[..., None] - logits_BTS, log_z_BT - jnp.sum(sums, axis=0) / V)


def _check_lengths(name: str, states, targets) -> None:
  if states.ndim != 3 or states.shape[:2] != targets.shape:
    raise ValueError(
      f'{name} {states.shape} and targets {targets.shape}: expected as many positions as targets, [B, T, ...] and [B, T]. '
      'Predict with the length of the target, and pad both to one T.'
    )
