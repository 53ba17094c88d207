"""Chooses the next token from logits: greedy, or with temperature, top-k, top-p, min-p and a repetition penalty.

The filters are applied in Hugging Face's order: penalty, temperature, top-k, top-p, min-p. A filter keeps every token
whose score reaches a threshold, and the threshold is found by bisection over float bit patterns: exact, and without
the sort over the vocabulary that would cost more than the rest of a decoding step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


def choose(
  logits: Float[Array, 'B V'], keys: jax.Array, seen: Bool[Array, 'B V'] | None, values: dict[str, jax.Array]
) -> Int[Array, ' B']:
  """Returns the next token of each row. `keys` [B]: a random key for each row and position; `values`: Sampling.active."""
  return first_largest(ranked(logits, keys, seen, values))


def first_largest(x: Float[Array, '... V']) -> Int[Array, '...']:
  """Returns the index of the first largest entry along the last axis, int32; if an entry is NaN, the last index.

  That is argmax as two reductions. XLA's CPU backend reduces pairs of value and index without vector instructions: over a
  vocabulary, argmax takes ten times as long.
  """
  last = x.shape[-1] - 1
  index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), index, last), axis=-1)


def ranked(logits, keys, seen, values) -> Float[Array, 'B V']:
  """Returns scores whose maximum is the next token. In descending order of score, tokens are samples without replacement."""
  scores = warped(logits, seen, values)
  return scores + noise(keys, logits.shape[1]) if 'temperature' in values else scores


def noise(keys: jax.Array, size: int) -> Float[Array, 'B V']:
  """Returns float32 Gumbel noise for each key."""
  return jax.vmap(lambda key: jax.random.gumbel(key, (size,), jnp.float32))(keys)


def warped(logits, seen, values) -> Float[Array, 'B V']:
  """Returns the logits to sample from, after penalty, temperature and filters."""
  if 'repetition_penalty' in values:
    logits = penalise(logits, seen, values['repetition_penalty'])
  return keep(heated(logits, values['temperature']), values) if 'temperature' in values else logits


def heated(logits: Float[Array, 'B V'], temperature) -> Float[Array, 'B V']:
  """Returns logits / temperature; in rows where this overflows, (logits - largest logit) / temperature.

  Both have the same softmax. With the smallest temperatures the largest logit is chosen.
  """
  largest = jnp.max(logits, axis=-1, keepdims=True)
  return (logits - jnp.where(jnp.isfinite(largest / temperature), 0.0, largest)) / temperature


def penalise(logits: Float[Array, 'B V'], seen: Bool[Array, 'B V'], penalty) -> Float[Array, 'B V']:
  return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep(logits: Float[Array, 'B V'], values: dict[str, jax.Array]) -> Float[Array, 'B V']:
  """Sets logits that the filters in `values` (top_k, top_p, min_p) drop to -inf."""
  drop_below = lambda logits, threshold: jnp.where(logits >= threshold, logits, -jnp.inf)
  if 'top_k' in values:
    logits = drop_below(logits, largest_threshold(logits, jnp.ones_like(logits), values['top_k']))
  if 'top_p' in values:
    probability = jax.nn.softmax(logits, axis=-1)
    # The probabilities may sum to just under top_p by rounding; the minimum then keeps every token.
    budget = jnp.minimum(values['top_p'], jnp.sum(probability, axis=-1, keepdims=True))
    logits = drop_below(logits, largest_threshold(logits, probability, budget))
  if 'min_p' in values:
    logits = drop_below(logits, jnp.max(logits, axis=-1, keepdims=True) + jnp.log(values['min_p']))
  return logits


def largest_threshold(x: Float[Array, 'B V'], weight: Float[Array, 'B V'], budget) -> Float[Array, 'B 1']:
  """Returns for each row the largest t for which the weights of the entries with x >= t sum to at least `budget`; -inf if none.

  Bisection over the 2^32 float32 values in their order: 32 passes of compare and sum.
  """

  def as_float(order):  # uint32 in the order of the floats -> float32
    bits = jnp.where(order >> 31 == 1, order ^ jnp.uint32(1 << 31), ~order)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)

  def enough(order):
    return jnp.sum(jnp.where(x >= as_float(order), weight, 0), axis=-1, keepdims=True) >= budget

  def halve(i, low):  # `low` is the largest order known to be enough, fixed from the highest bit down
    higher = low | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where(enough(higher), higher, low)

  low = jax.lax.fori_loop(0, 32, halve, jnp.zeros((x.shape[0], 1), jnp.uint32))
  threshold = as_float(low)
  return jnp.where(jnp.isnan(threshold), -jnp.inf, threshold)
