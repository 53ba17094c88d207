"""Connectionist temporal classification (Graves et al. 2006) for decoders with more positions than targets, as sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import optax

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int, Num


def ctc(
  logits: Float[Array, 'B S V'],
  targets: Int[Array, 'B T'],
  mask: Num[Array, 'B T'] | None = None,
  *,
  blank_id: int = 0,
  prediction_mask: Num[Array, 'B S'] | None = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (-log p summed over sentences, number of targets), both float32 scalars.

  p sums over all sequences of S tokens that become the target once equal neighbours are merged and blanks dropped. A target that
  needs more than S tokens (its own and a blank between equal neighbours) has about 1e5 as its loss.

  Args:
    logits: any float dtype; S is usually 2 or 3 times the length of the source.
    targets: token ids, none of them blank; ignored where the mask is 0.
    mask: 1 for the first targets of a row, which are its sentence, and 0 for padding; None: 1 for all.
    blank_id: token that stands for nothing.
    prediction_mask: the same for predictions.

  Raises:
    ValueError: batches that differ.
  """
  B, S, _ = logits.shape
  if targets.shape[0] != B:
    raise ValueError(f'logits {logits.shape} and targets {targets.shape}: expected [B, S, V] and [B, T].')
  padding = lambda given, shape: jnp.zeros(shape, jnp.float32) if given is None else (given == 0).astype(jnp.float32)
  target_padding = padding(mask, targets.shape)
  loss_B = optax.ctc_loss(
    logits.astype(jnp.float32), padding(prediction_mask, (B, S)), targets, target_padding, blank_id=blank_id
  ).astype(jnp.float32)  # float64 with jax_enable_x64
  n_B = jnp.sum(1 - target_padding, axis=1)
  return jnp.sum(jnp.where(n_B > 0, loss_B, 0.0)), jnp.sum(n_B)
