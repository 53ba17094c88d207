"""The loop in which a model drafts, token after token, until a token is improbable or the row is full.

A drafter that is a model passes its step function, and its cache (or its keys and values beside the target's). The loop chooses
the tokens, decides when to stop, and chooses how many candidates are verified beside each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.sampling import ranked, warped
from decoders.speculative.rounds import SpeculativeState, independent_key
from decoders.speculative.trees import Rule, Tree, with_leaves

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

  Step = Callable[[Int[Array, 'R 1'], Int[Array, 'R 1'], Any], tuple[Float[Array, 'R V'], Any]]


@dataclasses.dataclass(frozen=True)
class DraftPolicy:
  """How many tokens are drafted in a round, and how many candidates are verified at each depth."""

  max_draft: int
  """Largest number of tokens in a chain."""
  threshold: float
  """A drafted token less probable than this ends its chain."""
  adapt: bool = False
  """Whether the threshold of each row changes from round to round; see `adapted_threshold`."""
  width_bounds: tuple[float, ...] = ()
  """Decreasing probabilities of the drafted token that separate the `widths`."""
  widths: tuple[int, ...] = (1,)
  """Numbers of candidates at a depth, the drafted token included: one number above each of `width_bounds`, and one below them."""
  by_largest: bool = False
  """Whether the probability of the likeliest token decides the number of candidates, instead of the drafted token's. They differ when
  tokens are sampled."""

  @property
  def most_beside(self) -> int:
    """Most candidates beside a drafted token."""
    return self.widths[-1] - 1

  def sizes(self, depths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Returns (depth, most leaves) of the trees with chains of these lengths."""
    # All tokens of a chain but the last are at least as probable as the threshold, if it does not adapt.
    least = 0.0 if self.adapt else self.threshold
    bounds = (1.0, *self.width_bounds)
    before_last = max((w for b, w in zip(bounds, self.widths) if b > least), default=self.widths[0])
    return tuple((depth, (depth - 1) * (before_last - 1) + self.most_beside) for depth in depths)

  def width(self, probability: Float[Array, ' R']) -> Int[Array, ' R']:
    """Returns the number of candidates at a depth with this probability of the drafted, or with `by_largest` the likeliest, token."""
    width_R = jnp.full(probability.shape, self.widths[-1])
    for bound, width in reversed(list(zip(self.width_bounds, self.widths))):
      width_R = jnp.where(probability > bound, width, width_R)
    return width_R


@struct.dataclass
class Drafting:
  """State of the drafting loop: R growing chains of at most D tokens, with W candidates at each depth."""

  depth: jax.Array  # [] int32, tokens of the longest chain so far
  last: jax.Array  # [R] int32, the token drafted last
  growing: jax.Array  # [R] bool
  length: jax.Array  # [R] int32, tokens of the chain
  candidates: jax.Array  # [R, D, W] int32, the best first, which is the chain's token
  widths: jax.Array  # [R, D] int32, how many of the candidates are verified
  odds: jax.Array | None  # [R, D, V] float32, probabilities that the candidates were drawn from; None: not drawn
  read: Any  # the state that the step function carries, such as a cache


def draft(
  step: Step,
  read: Any,
  state: SpeculativeState,
  values: dict,
  rule: Rule,
  policy: DraftPolicy,
  vocab_size: int,
  *,
  threshold: Float[Array, ' R'] | None = None,
  idle: jax.Array | None = None,
  first_logits: Float[Array, 'R V'] | None = None,
) -> tuple[Tree, Any]:
  """Returns (a tree for each row, the last state of the step function). Runs under jit.

  Args:
    step: given the newest token of each row [R, 1], its position [R, 1] and `read`, returns (float32 logits after it [R, V],
      the new `read`).
    read: the first state of the step function; its shapes never change.
    values, rule: as for `Drafter.propose`.
    threshold: a threshold for each row, instead of the policy's.
    idle: [R] bool, rows that need no tree, in addition to those that are done.
    first_logits: the logits after `state.last`, if the drafter has read that token already (None: the first step reads it).
  """
  R, D, W = len(state.last), policy.max_draft, min(policy.widths[-1], vocab_size)
  threshold = policy.threshold if threshold is None else threshold
  drawn = rule == 'residual' and 'temperature' in values
  room_R = state.tokens.shape[1] - state.lengths - 1  # The target chooses the last token of a round.
  idle_R = state.done if idle is None else state.done | idle

  def extended(s: Drafting, logits_RV, read) -> Drafting:
    t = s.depth
    # With the noise that the target will use, the draft makes the target's choice most often. Drawn tokens need independent noise.
    key = independent_key if drawn else jax.random.fold_in
    noise_R = jax.vmap(key)(state.keys, state.position + t + 1)
    scores_RW, top_RW = jax.lax.top_k(ranked(logits_RV, noise_R, state.seen, values), W)
    logit_R = jnp.take_along_axis(logits_RV, top_RW[:, :1], axis=1)[:, 0]
    total_R = jax.nn.logsumexp(logits_RV, axis=-1)
    probability_R = jnp.exp(logit_R - total_R)
    confidence_R = jnp.exp(jnp.max(logits_RV, axis=-1) - total_R) if policy.by_largest else probability_R
    # Tokens that a sampling filter drops have the score -inf, and are not candidates.
    width_R = jnp.minimum(policy.width(confidence_R), jnp.isfinite(scores_RW).sum(axis=1))
    put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), t, 1)
    return Drafting(
      depth=t + 1,
      last=top_RW[:, 0],
      growing=s.growing & (probability_R >= threshold) & (t + 1 < room_R),
      length=jnp.where(s.growing, t + 1, s.length),
      candidates=put(s.candidates, top_RW),
      widths=put(s.widths, width_R),
      odds=put(s.odds, jax.nn.softmax(warped(logits_RV, state.seen, values), axis=-1)) if drawn else None,
      read=read,
    )

  def next_token(s: Drafting) -> Drafting:
    position_R = jnp.minimum(state.position + s.depth, state.total - 1)  # Rows that stopped may be at their end.
    return extended(s, *step(s.last[:, None], position_R[:, None], s.read))

  ints = lambda *shape: jnp.zeros((R, *shape), jnp.int32)
  odds = jnp.zeros((R, D, vocab_size), jnp.float32) if drawn else None
  s = Drafting(jnp.int32(0), state.last, ~idle_R & (room_R > 0), ints(), ints(D, W), ints(D), odds, read)
  if first_logits is not None:
    s = extended(s, first_logits, read)
  s = jax.lax.while_loop(lambda s: (s.depth < D) & jnp.any(s.growing), next_token, s)
  ((_, most_leaves),) = policy.sizes([D])
  chain_RD, beside_RDW = s.candidates[:, :, 0], s.candidates[:, :, 1:]
  return with_leaves(chain_RD, s.length, beside_RDW, s.widths - 1, most_leaves, s.odds), s.read


def adapted_threshold(
  threshold: Float[Array, ' R'],
  acceptance: Float[Array, ' R'],
  drafted: Int[Array, ' R'],
  accepted: Int[Array, ' R'],
  max_draft: int,
) -> tuple[Float[Array, ' R'], Float[Array, ' R']]:
  """Returns each row's (threshold, smoothed acceptance rate) after a round, as in Draft & Verify
  (https://arxiv.org/abs/2309.08168): the threshold rises while less than 0.9 of the drafted tokens are accepted, and falls
  otherwise. It does not change after a round without drafted tokens, or with `max_draft` of them.
  """
  some_R = drafted > 0
  latest_R = accepted / jnp.maximum(drafted, 1)
  acceptance_R = jnp.where(some_R, 0.5 * acceptance + 0.5 * latest_R, acceptance)
  aim_R = jnp.where(acceptance_R < 0.9, threshold + 0.01, threshold - 0.01)
  moved_R = 0.9 * threshold + 0.1 * aim_R
  return jnp.where(~some_R | (drafted >= max_draft), threshold, moved_R), acceptance_R
