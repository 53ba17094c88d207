"""The hypotheses of a beam search: those that run, those that have ended, and what a search returns.

  score = sum_t log p(y_t | y_<t, x) / n^length_penalty

n counts the generated tokens, EOS included, as in transformers. Letters: W beam width, M room for tokens, C candidates of a step.
"""

from __future__ import annotations

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Kept:
  """The best W hypotheses of each source that have ended, best first; where there are fewer, the score is -inf."""

  tokens: jax.Array  # [B, W, M] int32, zeros after the end
  lengths: jax.Array  # [B, W] int32, EOS included
  scores: jax.Array  # [B, W] float32

  @classmethod
  def none(cls, sources: int, width: int, room: int) -> 'Kept':
    zeros = lambda *shape: jnp.zeros((sources, width, *shape), jnp.int32)
    return cls(zeros(room), zeros(), jnp.full((sources, width), -jnp.inf))

  @property
  def worst(self) -> jax.Array:
    """The score [B] that a further hypothesis has to beat; -inf where fewer than W have ended."""
    return self.scores[:, -1]

  def updated(self, tokens_BCM, length, scores_BC) -> 'Kept':
    """Returns the best W of those here and further ones, all of one length; -inf marks what has not ended.

    Among equal scores those here come first, then the further ones in their order.
    """
    lengths_BC = jnp.full(scores_BC.shape, length, jnp.int32)
    both = lambda old, new: jnp.concatenate([old, new], axis=1)
    scores, at_BW = jax.lax.top_k(both(self.scores, scores_BC), self.scores.shape[1])
    return Kept(take(both(self.tokens, tokens_BCM), at_BW), take(both(self.lengths, lengths_BC), at_BW), scores)


@struct.dataclass
class Search:
  """The state of a search: W running hypotheses of equal length for each of B sources, and those that have ended."""

  tokens: jax.Array  # [B, W, M] int32, generated so far
  scores: jax.Array  # [B, W] float32 sums of log-probabilities, best first; -inf: there is no such hypothesis
  last: jax.Array  # [B, W] int32, the newest token, which is not in the cache yet
  length: jax.Array  # [] int32, tokens generated
  kept: Kept
  done: jax.Array  # [B] bool
  finite: jax.Array  # [B] bool, whether all logits were numbers; once one is False, all sources are done
  recombined: jax.Array  # [B] int32, candidates dropped for a better one with the same future
  cache: Any


@struct.dataclass
class Hypotheses:
  """The result of a search. Hypotheses of a source come best first; where there are fewer than W, the score is -inf."""

  tokens: jax.Array  # [B, W, M] int32, zeros after the end
  lengths: jax.Array  # [B, W] int32, EOS included
  scores: jax.Array  # [B, W] float32, divided by the length penalty
  steps: jax.Array  # [] int32, calls of the model
  recombined: (
    jax.Array
  )  # [B] int32, candidates that were good enough to go on and were dropped for one with the same future
  finite: jax.Array  # [B] bool, whether all logits were numbers; where False, the hypotheses have no meaning


def take(x, index_BC):
  """Returns what `index` names along axis 1 of x [B, W, ...]."""
  return jnp.take_along_axis(x, index_BC.reshape(*index_BC.shape, *(1,) * (x.ndim - 2)), axis=1)
