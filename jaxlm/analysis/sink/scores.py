"""The attention-sink metric, from attention maps.

  alpha_k = 1 / (T - k + 1) sum_{i >= k} A_ik        the mean over the queries that can see key k
  Sink_k  = mean over layers, heads and sequences of 1[alpha_k > eps]

"When Attention Sink Emerges in Language Models" (https://arxiv.org/abs/2410.10781): eps = 0.3, T = 64, 100 sequences
without BOS. The threshold is applied to each sequence, not to a map averaged over sequences. The paper reports percent;
`Sink_k` in this library is a fraction in [0, 1]. It falls as T grows. It means nothing at the last positions, where alpha is
a mean over one or two queries.

Maps are [..., T, S] float with T queries. S = T keys, or S = T + 1 if a slot (a key bias or a sink logit) that all queries
see stands before them at index 0. A model with a sink token has ordinary square maps of T + 1 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

SHORTEST = 16


def sink_metric(weights: Float[Array, 'L B N T S'], eps: float | Sequence[float] = 0.3) -> Float[Array, '*E S']:
  """Returns Sink_k of each position, a fraction in [0, 1]: [S] for one eps, [E, S] for several. Computed in float32.

  If weights are not normalised, compute the metric for the weights and for their `proxy`, and compare with `row_mass`.

  Raises:
    ValueError: maps have another rank, are neither square nor square with one slot, or have fewer than 16 queries.
  """
  if len(weights.shape) != 5:
    raise ValueError(f'Attention maps are [layers, batch, heads, queries, keys], got the shape {weights.shape}.')
  T, S = weights.shape[-2:]
  if S not in (T, T + 1):
    raise ValueError(f'Maps of {T} queries have {T} keys, or {T + 1} with a slot before them, not {S}.')
  check_length(T)
  return sink_fraction(mean_attention(weights), eps)


def check_length(T: int) -> None:
  if T < SHORTEST:
    raise ValueError(
      f'{T} tokens are too few for the sink metric, which needs {SHORTEST}: uniform attention already gives the first of '
      f'8 tokens a mean weight of 0.34, above the threshold 0.3. The paper takes 64.'
    )


def sink_fraction(alpha: Float[Array, 'L B N S'], eps: float | Sequence[float]) -> Float[Array, '*E S']:
  """Returns how often alpha exceeds eps (strictly) over layers, sequences and heads: [S], or [E, S] for several eps."""
  if jnp.ndim(eps):
    return jnp.stack([sink_fraction(alpha, e) for e in eps])
  return (alpha > eps).mean(axis=(0, 1, 2), dtype=jnp.float32)


def mean_attention(weights: Float[Array, '*L T S']) -> Float[Array, '*L S']:
  """Returns alpha, float32: the mean weight of each key over the queries from its own position on."""
  T, S = weights.shape[-2:]
  sums = column_sums(weights, jnp.arange(T), T)
  return sums / seeing_queries(T, S).reshape((1,) * (sums.ndim - 1) + (S,))


def column_sums(weights: Float[Array, '*L C S'], rows: Int[Array, ' C'], total: int) -> Float[Array, '*L S']:
  """Returns the float32 sum of A_ik over the given queries i >= k.

  Args:
    weights: rows of the map, for C of its queries.
    rows: indices of these queries, from 0; indices from `total` on are padding.
    total: number of queries of the whole map; S = total + 1 means a slot at index 0.
  """
  C, S = weights.shape[-2:]
  # Queries before the key are left out: in a prefix LM they see it too, and alpha would exceed 1.
  seen_CS = (rows[:, None] + (S - total) >= jnp.arange(S)[None]) & (rows < total)[:, None]
  seen = seen_CS.reshape((1,) * (weights.ndim - 2) + (C, S))
  return jnp.where(seen, weights, 0).sum(axis=-2, dtype=jnp.float32)


def seeing_queries(T: int, S: int) -> Int[Array, ' S']:
  """Returns the number of queries at or after each key's position; T for a slot."""
  return jnp.minimum(T, S - jnp.arange(S))


def proxy(weights: Float[Array, '*L T S']) -> Float[Array, '*L T S']:
  """Returns |A| / (sum |A| + 1e-8) along keys, float32: the paper's scores for operations that do not normalise.

  The proxy ignores the total weight: a head whose rows sum to nearly 0 can still count as a sink. Compare with `row_mass`.
  """
  size = jnp.abs(jnp.asarray(weights, jnp.float32))
  return size / (size.sum(axis=-1, keepdims=True) + 1e-8)


def row_mass(weights: Float[Array, '*L T S']) -> Float[Array, '*L']:
  """Returns the mean over queries of sum_j A_ij, float32; 1 for softmax."""
  return jnp.asarray(weights, jnp.float32).sum(axis=-1).mean(axis=-1)


def first_to_rest(x: Float[Array, '*B T D']) -> Float[Array, '*B']:
  """Returns |x_1| / mean over t > 1 of |x_t|, float32. A value far above 1 for hidden states is a massive activation."""
  norms = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
  return norms[..., 0] / norms[..., 1:].mean(axis=-1)
