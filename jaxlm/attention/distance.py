"""Position schemes that add a term to the logits, which depends on the distance between query and key.

alibi          s_ij - m_h (i - j),  m_h = 2^(-8 h / N)          https://arxiv.org/abs/2108.12409
relative_t5    s_ij + table_h[bucket(i - j)], learned           https://arxiv.org/abs/1910.10683
relative_paper s_ij + bucket(i - j)                             as in the code of the attention-sink paper
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

BUCKETS, MAX_DISTANCE = 32, 128


def alibi_slopes(num_heads: int) -> np.ndarray:
  return 2.0 ** (-8.0 * np.arange(1, num_heads + 1) / num_heads)


def bucket(distance: Int[Array, '...'], buckets: int = BUCKETS) -> Int[Array, '...']:
  """Returns T5's bucket of a distance: the first half of the buckets hold one distance each, the others are logarithmic up to 128."""
  exact = buckets // 2
  distance = jnp.maximum(distance, 0)
  steps = (
    jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(MAX_DISTANCE / exact) * (buckets - exact)
  )
  return jnp.where(distance < exact, distance, jnp.minimum(exact + steps.astype(jnp.int32), buckets - 1))


def both_sides_bucket(distance: Int[Array, '...']) -> Int[Array, '...']:
  """Returns T5's bucket for attention that is not causal: 0 .. 15 for keys up to the query, 16 .. 31 for later keys."""
  half = BUCKETS // 2
  return bucket(jnp.abs(distance), half) + jnp.where(distance < 0, half, 0)


def distance_scores(
  scheme: str, distance: Int[Array, 'B T S'], num_heads: int, table: Float[Array, 'N 32'] | None, causal: bool = True
) -> Float[Array, 'B N T S'] | None:
  """Returns the float32 term that a scheme adds to the logits, or None if it adds none. N is 1 if all heads have the same term.

  Args:
    distance: query position minus key position.
    table: learned table of relative_t5.
    causal: whether queries see no later keys. If False, relative_t5 uses other buckets for later keys
      (`both_sides_bucket`), and the other schemes use |distance|.
  """
  if not causal and scheme == 'relative_t5':
    return jnp.moveaxis(table.T[both_sides_bucket(distance)], -1, 1).astype(jnp.float32)
  distance = distance if causal else jnp.abs(distance)
  if scheme == 'alibi':
    slopes_N = jnp.asarray(alibi_slopes(num_heads), jnp.float32)
    return -slopes_N[None, :, None, None] * distance[:, None].astype(jnp.float32)
  if scheme == 'relative_t5':
    return jnp.moveaxis(table.T[bucket(distance)], -1, 1).astype(jnp.float32)
  if scheme == 'relative_paper':  # The term is the bucket's number: it raises distant keys' logits by up to 31.
    return bucket(distance)[:, None].astype(jnp.float32)
  return None
