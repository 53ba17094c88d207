"""Interaction of words and classes, and its aggregation to a logit of each class (EXAM, https://arxiv.org/abs/1811.09386).

  I_s = H T_s + b_s                       scores of class s, one for each position
  o_s = relu(I_s W_1 + b_1) W_2 + b_2     an MLP that all classes share
      + sum_t I_s,t                       released code only ("residual")

Without the MLP, mean_t I_s,t is fastText's classifier and sum_t I_s,t the one of region embeddings. Every function treats classes
alike and apart, so a fused form may take any tile of classes: `class_logits` with `tile` computes them one tile after the other.

Letters: B texts, P positions, K width of representations, C classes, M hidden units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float


class Aggregation(NamedTuple):
  """How scores become logits; the fields are those of `jaxlm.exam_config.ExamConfig`."""

  aggregator: str = 'mlp'
  residual: str = 'none'
  mask: str = 'after'


class Mlp(NamedTuple):
  """Parameters of the MLP: kernel_in [P, M], bias_in [M], kernel_out [M], and bias_out [] or None."""

  kernel_in: jax.Array
  bias_in: jax.Array
  kernel_out: jax.Array
  bias_out: jax.Array | None = None


def interaction_scores(
  states: Float[Array, 'B P K'],
  table: Float[Array, 'C K'],
  bias: Float[Array, ' C'] | None,
  mask: Bool[Array, 'B P'],
  stage: str = 'after',
) -> Float[Array, 'B C P']:
  """Returns the float32 score of each class at each position.

  Args:
    states: representations of the words.
    table: class vectors.
    bias: a number added to all scores of a class, or None.
    mask: which positions are real words.
    stage: 'after': scores of padding are 0; 'before': they are the bias; 'none': padding counts as a word.
  """
  if stage == 'before':
    states = jnp.where(mask[:, :, None], states, 0)
  scores_BCP = jnp.einsum('BPK,CK->BCP', states, table.astype(states.dtype), preferred_element_type=jnp.float32)
  if bias is not None:
    scores_BCP = scores_BCP + bias.astype(jnp.float32).reshape(1, -1, 1)
  return jnp.where(mask[:, None], scores_BCP, 0) if stage == 'after' else scores_BCP


def aggregate(
  scores: Float[Array, 'B C P'], mask: Bool[Array, 'B P'], mlp: Mlp | None, how: Aggregation, dtype=jnp.float32
) -> Float[Array, 'B C']:
  """Returns the float32 logits of classes from their scores.

  Args:
    scores: from `interaction_scores`.
    mask: which positions are real words. With how.mask='none' all positions count in a mean.
    mlp: parameters, for how.aggregator='mlp'.
    dtype: type in which the MLP is computed; sums are float32.
  """
  B, C, P = scores.shape
  if how.aggregator == 'last':
    # The last real word, or the last position if padding counts as a word.
    last_B = jnp.full(B, P - 1) if how.mask == 'none' else jnp.maximum(P - 1 - jnp.argmax(mask[:, ::-1], axis=1), 0)
    return jnp.take_along_axis(scores, last_B[:, None, None], axis=2)[:, :, 0]
  total_BC = jnp.sum(scores, axis=-1)
  counted_B1 = jnp.full((B, 1), float(P)) if how.mask == 'none' else jnp.sum(mask, axis=1, dtype=jnp.float32)[:, None]
  means = {'sum': total_BC, 'mean': total_BC / jnp.maximum(counted_B1, 1)}
  if how.aggregator != 'mlp':
    return means[how.aggregator]
  kernel_PM, out_M = mlp.kernel_in.astype(dtype), mlp.kernel_out.astype(dtype)
  in_BCM = jnp.einsum('BCP,PM->BCM', scores.astype(dtype), kernel_PM, preferred_element_type=jnp.float32)
  hidden_BCM = jax.nn.relu(in_BCM + mlp.bias_in.astype(jnp.float32).reshape(1, 1, -1))
  logits_BC = jnp.einsum('BCM,M->BC', hidden_BCM.astype(dtype), out_M, preferred_element_type=jnp.float32)
  if mlp.bias_out is not None:
    logits_BC = logits_BC + mlp.bias_out.astype(jnp.float32)
  return logits_BC if how.residual == 'none' else logits_BC + means[how.residual]


def class_logits(
  states: Float[Array, 'B P K'],
  table: Float[Array, 'C K'],
  bias: Float[Array, ' C'] | None,
  mask: Bool[Array, 'B P'],
  mlp: Mlp | None,
  how: Aggregation,
  *,
  tile: int = 0,
) -> Float[Array, 'B C']:
  """Returns the float32 logits of all classes.

  Args:
    states, table, bias, mask: as for `interaction_scores`.
    mlp, how: as for `aggregate`.
    tile: number of classes computed at once; the backward pass computes their scores again, so that memory holds those of one tile.
      0: all classes at once.
  """

  def of_classes(table_CK, bias_C):
    scores_BCP = interaction_scores(states, table_CK, bias_C, mask, how.mask)
    return aggregate(scores_BCP, mask, mlp, how, states.dtype)

  C, K = table.shape
  if not 0 < tile < C:
    return of_classes(table, bias)
  padded = -(-C // tile) * tile
  table_NXK = jnp.pad(table, ((0, padded - C), (0, 0))).reshape(-1, tile, K)
  bias_NX = None if bias is None else jnp.pad(bias, (0, padded - C)).reshape(-1, tile)
  body = jax.checkpoint(lambda tiles: of_classes(*tiles))
  logits_NBX = jax.lax.map(body, (table_NXK, bias_NX))
  return jnp.moveaxis(logits_NBX, 0, 1).reshape(len(states), padded)[:, :C]


def contribution_scores(
  scores: Float[Array, 'B C P'], mask: Bool[Array, 'B P'], mlp: Mlp | None, how: Aggregation
) -> tuple[Float[Array, 'B C P'], Float[Array, 'B C']]:
  """Returns (what each position adds to the logit of each class, the rest of the logit that belongs to no position).

  A contribution is score times gradient. A logit is piecewise linear in its scores, so contributions and rest add up to it: the
  rest is what the MLP's biases add through its active units. Arguments are those of `aggregate`.
  """
  logits_BC, gradient = jax.vjp(lambda scores: aggregate(scores, mask, mlp, how), scores)
  # The logit of a class depends on its own scores alone, so the gradient of the sum of all logits has each one's.
  (slopes_BCP,) = gradient(jnp.ones_like(logits_BC))
  parts_BCP = slopes_BCP * scores
  return parts_BCP, logits_BC - jnp.sum(parts_BCP, axis=-1)
