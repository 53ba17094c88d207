"""Distance between the next-token distributions of a draft model, q, and of its target, p, without the logits of a whole batch.

  kl   sum_v p_v (log p_v - log q_v)
  tv   1/2 sum_v |p_v - q_v|  =  1 - sum_v min(p_v, q_v)

with p and q at the same temperature. Speculative sampling accepts a drafted token with probability sum_v min(p_v, q_v), so tv is
the probability of a rejection (https://arxiv.org/abs/2310.08461 compares such losses). As in `cross_entropy`, the logits are
computed in slices of the sequence; those of a slice are computed again in the backward pass.

A draft may predict only the first tokens of the target's vocabulary. Then q is 0 for the others, and kl compares it with p given that
the token is among the first, since it would be infinite otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from jaxlm.errors import unknown
from jaxlm.losses.cross_entropy import capped_logits, slice_count, slices

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Num

Divergence = Literal['kl', 'tv']


def _kl(q_BCV, p_BCV):
  log_p_BCV = jax.nn.log_softmax(p_BCV)
  return jnp.sum(jnp.exp(log_p_BCV) * (log_p_BCV - jax.nn.log_softmax(q_BCV)), axis=-1)


def _overlap(q_BCV, p_BCV):
  return jnp.sum(jnp.minimum(jax.nn.softmax(q_BCV), jax.nn.softmax(p_BCV)[..., : q_BCV.shape[-1]]), axis=-1)


def _tv(q_BCV, p_BCV):
  # Not 1 - overlap, whose rounding error is larger than a small distance.
  p_BCV, n = jax.nn.softmax(p_BCV), q_BCV.shape[-1]
  common_BC = jnp.sum(jnp.abs(jax.nn.softmax(q_BCV) - p_BCV[..., :n]), axis=-1)
  return (common_BC + jnp.sum(p_BCV[..., n:], axis=-1)) / 2


def _agreement(q_BCV, p_BCV):
  return (jnp.argmax(q_BCV, axis=-1) == jnp.argmax(p_BCV, axis=-1)).astype(jnp.float32)


DIVERGENCES: dict[str, Callable] = {'kl': _kl, 'tv': _tv}


def divergence(
  hidden: Float[Array, 'B T D'],
  output_matrix: Float[Array, 'D V'],
  target_hidden: Float[Array, 'B T E'],
  target_matrix: Float[Array, 'E V'],
  mask: Num[Array, 'B T'],
  kind: Divergence = 'kl',
  *,
  temperature: float = 1.0,
  softcap: float | None = None,
  target_softcap: float | None = None,
  chunk: int | None = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (sum of the masked distances, in nats for kl, sum of the mask), both float32 scalars.

  No gradient flows into the target's arrays and the mask. E is the width of the target.

  Args:
    hidden, target_hidden: states after the final norm of the draft and of the target.
    output_matrix, target_matrix: their output matrices, cast to the dtype of the states. The draft's may have fewer columns.
    mask: weight of each position.
    kind: 'kl' or 'tv'.
    temperature: both models' logits are divided by it; at least that of the sampling for which the draft is trained, above 0.
    softcap, target_softcap: logits become softcap * tanh(logits / softcap); None: they stay as they are.
    chunk: about how many tokens (B times a slice of T) are computed at once; 0: all; None: chosen by size.

  Raises:
    ValueError: an unknown kind, a temperature that is not above 0, shapes that do not fit together, or a negative chunk.
  """
  if kind not in DIVERGENCES:
    raise unknown('divergence', kind, DIVERGENCES)
  if not temperature > 0:
    raise ValueError(f'{temperature=} must be above 0: logits are divided by it.')
  if kind == 'kl':
    target_matrix = target_matrix[:, : output_matrix.shape[1]]
  of = lambda q, p: (DIVERGENCES[kind](q / temperature, p / temperature),)
  softcaps = softcap, target_softcap
  (total,), weight = _sums(of, hidden, output_matrix, target_hidden, target_matrix, mask, softcaps, chunk)
  return total, weight


def agreement(
  hidden: Float[Array, 'B T D'],
  output_matrix: Float[Array, 'D V'],
  target_hidden: Float[Array, 'B T E'],
  target_matrix: Float[Array, 'E V'],
  mask: Num[Array, 'B T'],
  *,
  softcap: float | None = None,
  target_softcap: float | None = None,
  chunk: int | None = None,
) -> tuple[Float[Array, ''], Float[Array, ''], Float[Array, '']]:
  """Returns sums over the masked positions: of whether both models have the same likeliest token, and of sum_v min(p_v, q_v).

  The third value is the sum of the mask. Divided by it, they are the probabilities that a drafted token is accepted by greedy
  decoding and by sampling at temperature 1. The arguments and errors are those of `divergence`.
  """
  of = lambda q, p: (_agreement(q, p), _overlap(q, p))
  softcaps = softcap, target_softcap
  (same, overlap), weight = _sums(of, hidden, output_matrix, target_hidden, target_matrix, mask, softcaps, chunk)
  return same, overlap, weight


def _sums(of: Callable, hidden, output_matrix, target_hidden, target_matrix, mask, softcaps, chunk):
  """Returns (sums of the arrays [B, T] of of(draft's logits, target's logits) times the mask, sum of the mask)."""
  steps = slice_count(hidden, output_matrix, mask, chunk) or 1
  target_hidden, target_matrix, mask = jax.lax.stop_gradient((target_hidden, target_matrix, mask.astype(jnp.float32)))

  @jax.checkpoint
  def one_slice(xs):
    h_BCD, target_BCE, mask_BC = xs
    logits = capped_logits(h_BCD, output_matrix, softcaps[0]), capped_logits(target_BCE, target_matrix, softcaps[1])
    return tuple(jnp.sum(x_BC * mask_BC) for x_BC in of(*logits))

  parts = jax.lax.map(one_slice, tuple(slices(x, steps) for x in (hidden, target_hidden, mask)))
  return tuple(map(jnp.sum, parts)), jnp.sum(mask)
