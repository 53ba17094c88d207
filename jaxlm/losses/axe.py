"""Aligned cross-entropy, AXE (Ghazvininejad et al. 2020, https://arxiv.org/abs/2004.01655): targets are aligned monotonically.

A_ij is the least cost of aligning the first i targets y with the first j predictions P:

  A_ij = min( A_i-1,j-1 - log P_j(y_i),            align
              A_i,j-1   - log P_j(epsilon),        skip prediction j: it should be the special token epsilon
              A_i-1,j   - delta log P_j(y_i) )     skip target i: it is predicted at j too, at delta times its cost
  A_00 = 0,   A_i0 = A_i-1,0 - delta log P_1(y_i)

and the loss is A at the end of both. Its gradient is that of cross-entropy along the best alignment. S is the number of predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int, Num


def axe(
  logits: Float[Array, 'B S V'],
  targets: Int[Array, 'B T'],
  mask: Num[Array, 'B T'] | None = None,
  *,
  epsilon_id: int,
  delta: float = 1.0,
  prediction_mask: Num[Array, 'B S'] | None = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (sum of the losses of the sentences, number of targets), both float32 scalars.

  Args:
    logits: any float dtype; S may differ from T.
    targets: token ids; ignored where the mask is 0.
    mask: 1 for the first targets of a row, which are its sentence, and 0 for padding; None: 1 for all.
    epsilon_id: the token that stands for nothing; dropped after decoding.
    delta: factor of the cost of a target that gets no prediction of its own, at least 0.
    prediction_mask: the same for predictions.

  Raises:
    ValueError: batches that differ, no prediction at all, or a negative delta.
  """
  B, S, _ = logits.shape
  if targets.shape[0] != B or S == 0:
    raise ValueError(f'logits {logits.shape} and targets {targets.shape}: expected [B, S, V] and [B, T], S at least 1.')
  if delta < 0:
    raise ValueError(f'{delta=} must not be negative.')
  T = targets.shape[1]
  ones = lambda given, shape: jnp.ones(shape, jnp.float32) if given is None else (given != 0).astype(jnp.float32)
  mask, prediction_mask = ones(mask, (B, T)), ones(prediction_mask, (B, S))
  count = lambda mask: jnp.sum(mask, axis=1).astype(jnp.int32)

  nll_BSV = -jax.nn.log_softmax(logits.astype(jnp.float32))
  targets_BST = jnp.broadcast_to(targets[:, None, :], (B, S, T))
  nll_SBT = jnp.take_along_axis(nll_BSV, targets_BST, axis=2, mode='clip').swapaxes(0, 1)
  epsilon_SB = nll_BSV[:, :, epsilon_id].swapaxes(0, 1)

  def next_prediction(before, xs):
    nll_BT, epsilon_B = xs
    skip_prediction = before + epsilon_B[:, None]
    align = before[:, :-1] + nll_BT
    start = jnp.concatenate([skip_prediction[:, :1], jnp.minimum(align, skip_prediction[:, 1:])], axis=1)
    after = _skip_targets(start, delta * nll_BT)
    return after, after

  first = jnp.pad(jnp.cumsum(delta * nll_SBT[0], axis=1), ((0, 0), (1, 0)))
  _, later = jax.lax.scan(next_prediction, first, (nll_SBT, epsilon_SB))
  A = jnp.concatenate([first[None], later])  # [S + 1, B, T + 1]
  n_B = count(mask)
  loss_B = A[count(prediction_mask), jnp.arange(B), n_B]
  return jnp.sum(jnp.where(n_B > 0, loss_B, 0.0)), jnp.sum(mask)


def _skip_targets(start, skip):
  """Returns a with a_0 = start_0, a_i = min(start_i, a_i-1 + skip_i), as an associative scan of x -> min(start, x + skip)."""

  def then(f, g):
    (f_start, f_skip), (g_start, g_skip) = f, g
    return jnp.minimum(g_start, f_start + g_skip), f_skip + g_skip

  skip = jnp.pad(skip, ((0, 0), (1, 0)))
  return jax.lax.associative_scan(then, (start, skip), axis=1)[0]
