"""Which K prefixes the target keeps at one step, and whether all of them were drafted: the rules of verification.

  strict          The K best children: the target's own beam search.
  relaxed         The paper's rule. Each drafted prefix y is accepted with probability min(1, p(y) / q(y)), on its own. If K or more are
                  accepted, K of them are kept, at random or by score. Otherwise all are kept, and the rest is drawn without
                  replacement from max(0, p - q).
  relaxed_exact   Sequential speculative sampling without replacement. The result has exactly the law of K draws from p without
                  replacement: stochastic beam search with the target.

p and q are the softmax of the cumulative scores of all candidates of the target and of the draft. What `relaxed` does differs from draws
from p if more than K prefixes are drafted: a surplus of drafts favours what both models like. With replacement, a random one of the K
kept has the law rho min(p, q) / beta + (1 - rho) r with beta = sum min(p, q), r = norm(max(0, p - q)) and rho = E[min(A, K)] / K, A being
the number accepted of N. Its total variation distance from p is (rho - beta) TV(min(p, q) / beta, r), which is 0 for N = K and at most
1 - beta. Without replacement even q = p is biased for N > K, because the kept ones are a uniform choice.

Functions here are of one history. Letters: F candidates of the target, N drafted prefixes, K prefixes to keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from decoders.beam.prefixes import first_of

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Drafts:
  """What was drafted at one step, in the order of the draws, as the target's candidates see it."""

  place: (
    jax.Array
  )  # [N] int32, among the target's candidates; -1: the target has no such candidate, or nothing was drafted
  log_q: jax.Array  # [N] float32, -inf where nothing was drafted
  log_q_F: jax.Array  # [F] float32, of the target's candidates; -inf for those that the draft could not draw
  rest: jax.Array  # [] float32, the draft's probability of all that it did not draw


def strict(
  scores: Float[Array, ' F'], drafts: Drafts, kept: int
) -> tuple[Int[Array, ' K'], Bool[Array, ' K'], Bool[Array, '']]:
  """Returns (places of the kept candidates, which of the places are filled, whether all kept ones were drafted)."""
  (at_1K,), (there_K,) = first_of(scores[None], kept)
  drafted_K = (at_1K[:, None] == drafts.place[None, :]).any(axis=1)
  return at_1K, there_K, (drafted_K | ~there_K).all()


def relaxed(key, scores: Float[Array, ' F'], drafts: Drafts, kept: int, by_score: bool = False):
  """Returns as `strict`. `by_score`: of more than K accepted prefixes the best are kept, not a random choice."""
  accept_key, choice_key, residual_key, more_key = jax.random.split(key, 4)
  log_p_F = log_softmax(scores)
  log_p_N = of_places(log_p_F, drafts.place)
  u_N = jax.random.uniform(accept_key, log_p_N.shape, jnp.float32)
  accepted_N = (log_p_N > -jnp.inf) & (jnp.log(u_N) < log_p_N - drafts.log_q)
  ranks_N = log_p_N if by_score else jax.random.uniform(choice_key, log_p_N.shape, jnp.float32)
  (which_K,), (first_K,) = first_of(jnp.where(accepted_N, ranks_N, -jnp.inf)[None], kept)
  taken_F = put(drafts.place[which_K], first_K, len(scores))
  residual_F = jnp.maximum(jnp.exp(log_p_F) - jnp.exp(drafts.log_q_F), 0)
  residual_F = jnp.where(taken_F, 0, residual_F)
  second_K, in_second_K = draw(residual_key, jnp.log(residual_F), kept)
  # Where too little is left of p - q, the rest comes from p.
  third_K, in_third_K = draw(more_key, jnp.where(taken_F | (residual_F > 0), -jnp.inf, log_p_F), kept)
  at_3K = jnp.concatenate([drafts.place[which_K], second_K, third_K])
  there_3K = jnp.concatenate([first_K, in_second_K, in_third_K])
  chosen_K = jnp.argsort(~there_3K, stable=True)[:kept]
  there_K = there_3K[chosen_K]
  return jnp.maximum(at_3K[chosen_K], 0), there_K, first_K.sum() >= there_K.sum()


def relaxed_exact(key, scores: Float[Array, ' F'], drafts: Drafts, kept: int):
  """Returns as `strict`; the places are in the order of the draws.

  Slot k has the law p_k = p restricted to what no slot has. The drafts y_1, y_2, ... are walked in their order, y_i having the law
  q_i = q restricted to what was not drafted before. y_i fills slot k with probability min(1, p_k(y_i) / q_i(y_i)), and slot k + 1
  begins anew with p; otherwise p_k becomes norm(max(0, p_k - q_i)). A slot that finds no draft is drawn from what p_k has become, and
  later ones from their p_k.
  """
  walk_key, slot_key, more_key = jax.random.split(key, 3)
  index_F = jnp.arange(len(scores))
  q_F, q_N = jnp.exp(drafts.log_q_F), jnp.exp(drafts.log_q)
  # The probability of what was not drafted before each y_i, summed from its end, so that nothing cancels.
  left_N = drafts.rest + jnp.cumsum(q_N[::-1])[::-1]
  wanted = jnp.minimum((scores > -jnp.inf).sum(), kept)
  fresh = lambda free_F: jnp.exp(log_softmax(jnp.where(free_F, scores, -jnp.inf)))
  normed = lambda x_F, otherwise_F: jnp.where(x_F.sum() > 0, x_F / jnp.maximum(x_F.sum(), 1e-38), otherwise_F)

  def walk(carry, draft):
    filled, slots_K, free_F, law_F, undrawn_F = carry
    place, q, left, u = draft
    at = jnp.maximum(place, 0)
    there, open_ = place >= 0, filled < wanted
    fills = there & open_ & (u * q < law_F[at] * left)
    q_i_F = jnp.where(undrawn_F, q_F, 0) / left
    without_F = free_F & ~((index_F == at) & fills)
    next_F = jnp.where(fills, fresh(without_F), normed(jnp.maximum(law_F - q_i_F, 0), fresh(free_F)))
    law_F = jnp.where(open_ & (q > 0), next_F, law_F)
    slots_K = jnp.where((jnp.arange(kept) == filled) & fills, at, slots_K).astype(jnp.int32)
    undrawn_F &= ~((index_F == at) & there)
    return (filled + fills, slots_K, without_F, law_F, undrawn_F), None

  everything_F = jnp.ones(len(scores), bool)
  start = jnp.int32(0), jnp.zeros(kept, jnp.int32), everything_F, fresh(everything_F), everything_F
  us_N = jax.random.uniform(walk_key, q_N.shape, jnp.float32)
  (filled, slots_K, free_F, law_F, _), _ = jax.lax.scan(walk, start, (drafts.place, q_N, left_N, us_N))
  one_1, _ = draw(slot_key, jnp.log(law_F), 1)
  free_F &= index_F != one_1[0]
  others_K, _ = draw(more_key, jnp.where(free_F, log_softmax(scores), -jnp.inf), kept)
  drawn_K = jnp.concatenate([one_1, others_K])[:kept]
  slot_K = jnp.arange(kept)
  slots_K = jnp.where(slot_K < filled, slots_K, drawn_K[jnp.maximum(slot_K - filled, 0)])
  return slots_K, slot_K < wanted, filled >= wanted


def log_softmax(scores_F):
  """Returns log-probabilities; -inf where the score is, also if all are."""
  top = jnp.maximum(scores_F.max(), jnp.finfo(jnp.float32).min)
  shifted_F = scores_F - top
  return shifted_F - jnp.log(jnp.maximum(jnp.exp(shifted_F).sum(), 1e-38))


def of_places(x_F, place_N):
  """Returns the entries at places; -inf where there is no place."""
  return jnp.where(place_N >= 0, x_F[jnp.maximum(place_N, 0)], -jnp.inf)


def put(place_K, there_K, size: int):
  """Returns bool [size], true at the places that are there."""
  return jnp.zeros(size, bool).at[jnp.where(there_K, place_K, size)].set(True, mode='drop')


def draw(key, log_p_F, count: int) -> tuple[Int[Array, ' K'], Bool[Array, ' K']]:
  """Returns (places drawn without replacement from unnormalised log-probabilities, whether there was one left)."""
  (at_K,), (there_K,) = first_of((log_p_F + jax.random.gumbel(key, log_p_F.shape, jnp.float32))[None], count)
  return at_K, there_K
