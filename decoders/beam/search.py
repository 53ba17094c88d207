"""Batched beam search, to be traced into one program: a loop of static shapes over any model that can take a step.

Each step extends the W running hypotheses of a source by every id and takes the best (1 + E) W candidates, E the number of ids
that end one: at most E W of them end, so that W go on. A candidate that ends is kept if it is among the best W. Equal scores are
resolved by the lowest beam, then the lowest id. This is how transformers searches, whose scores and ways of early stopping
these are. Letters: W beam width, M room for tokens, C candidates of a step, R = B W rows, the beams of a source side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders.beam.config import BeamConfig
from decoders.beam.hypotheses import Hypotheses, Kept, Search, take

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

Step = Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""step(context, tokens [R] int32, positions [R] int32, cache) -> (logits [R, V], cache of the same structure)."""


def search(
  step: Step,
  context: Any,
  cache: Any,
  start: Int[Array, ' B'],
  positions: Int[Array, ' B'],
  limits: Int[Array, ' B'],
  length_penalty: Float[Array, ''] | float,
  *,
  beams: BeamConfig,
  max_new_tokens: int,
  min_new_tokens: Int[Array, ''] | int = 0,
) -> Hypotheses:
  """Returns the best hypotheses of each source.

  Args:
    step: reads one token of each row; see `Step`. Logits may be -inf for ids that must not follow, but not for all ids after a
      hypothesis that has not ended.
    context: what steps only read, such as parameters and the memory of the sources.
    cache: what steps extend; of R rows, with the tokens before `start`. Its `reordered(index [R])` moves rows.
    start: the token to read first, such as BOS, or the last one of a prompt.
    positions: position of `start`.
    limits: most tokens to generate for each source, at most max_new_tokens. A hypothesis that long has ended, with EOS or
      without. Where 0, nothing is generated.
    length_penalty: a hypothesis of n generated tokens, EOS included, is worth its sum of log-probabilities / n^length_penalty.
      Above 0 favours long hypotheses, below 0 short ones.
    beams: what the program is compiled for.
    max_new_tokens: room for tokens (static).
    min_new_tokens: fewest tokens before an id that ends the hypothesis.
  """
  B, W, M = len(start), beams.width, max_new_tokens
  row_B1 = jnp.arange(B)[:, None] * W

  def unfinished(s: Search):
    return ~jnp.all(s.done)

  def body(s: Search) -> Search:
    positions_BW = jnp.broadcast_to((positions + s.length)[:, None], (B, W))
    logits_RV, cache = step(context, s.last.reshape(-1), positions_BW.reshape(-1), s.cache)
    log_p_RV, log_z_R = log_probabilities(computed_apart(logits_RV, s.length >= 0))
    log_p_BWV = log_p_RV.reshape(B, W, -1)
    there_BW1 = s.scores[:, :, None] > -jnp.inf  # What is computed for other rows has no meaning.
    finite_B = s.finite & (s.done | ~(there_BW1[:, :, 0] & jnp.isnan(log_z_R.reshape(B, W))).any(axis=1))
    log_p_BWV = allowed(log_p_BWV, beams, s.length < min_new_tokens)
    total_BWV = jnp.where(there_BW1, s.scores[:, :, None] + log_p_BWV, -jnp.inf)
    V, C = total_BWV.shape[-1], (1 + len(beams.eos_ids)) * W
    worse_BWV = same_future(total_BWV, s, beams) if beams.markov_order else None
    best_BWV = total_BWV if worse_BWV is None else jnp.where(worse_BWV, -jnp.inf, total_BWV)
    scores_BC, at_BC = jax.lax.top_k(best_BWV.reshape(B, W * V), C)
    beam_BC, id_BC = at_BC // V, at_BC % V
    recombined_B = s.recombined
    if worse_BWV is not None:
      dropped_B = (worse_BWV & (total_BWV >= scores_BC[:, -1:, None])).sum(axis=(1, 2), dtype=jnp.int32)
      recombined_B += jnp.where(s.done, 0, dropped_B)

    length = s.length + 1
    last_B = length >= limits
    ends_BC = ends(id_BC, beams) | last_B[:, None]
    keeps_BC = ends_BC & (jnp.arange(C)[None] < W) & ~s.done[:, None]
    tokens_BCM = take(s.tokens, beam_BC).at[:, :, s.length].set(id_BC)
    penalty = lambda n: jnp.power(n.astype(jnp.float32), length_penalty)
    kept = s.kept.updated(tokens_BCM, length, jnp.where(keeps_BC, scores_BC / penalty(length), -jnp.inf))

    running_BW, goes_on_BW = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, scores_BC), W)
    done_B = s.done | last_B
    if beams.early_stopping is True:
      done_B |= kept.worst > -jnp.inf
    # Log-probabilities only sink a sum. Divided by a power of a length that may still grow, it may rise until the longest.
    longest_B = jnp.full((B,), length)
    if beams.early_stopping == 'never':
      longest_B = jnp.where(length_penalty > 0, limits, longest_B)
    done_B |= ~(running_BW[:, 0] / penalty(longest_B) > kept.worst)
    beam_BW = take(beam_BC, goes_on_BW)
    return Search(
      tokens=take(tokens_BCM, goes_on_BW),
      scores=running_BW,
      last=take(id_BC, goes_on_BW),
      length=length,
      kept=kept,
      done=done_B | ~finite_B.all(),
      finite=finite_B,
      recombined=recombined_B,
      cache=cache.reordered((row_B1 + beam_BW).reshape(-1)) if W > 1 else cache,
    )

  first = Search(
    tokens=jnp.zeros((B, W, M), jnp.int32),
    # All beams are the same before the first token, so only one of them counts.
    scores=jnp.broadcast_to(jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf)[None], (B, W)),
    last=jnp.broadcast_to(start[:, None].astype(jnp.int32), (B, W)),
    length=jnp.int32(0),
    kept=Kept.none(B, W, M),
    done=limits <= 0,
    finite=jnp.ones(B, bool),
    recombined=jnp.zeros(B, jnp.int32),
    cache=cache,
  )
  s = jax.lax.while_loop(unfinished, body, first)
  return Hypotheses(s.kept.tokens, s.kept.lengths, s.kept.scores, s.length, s.recombined, s.finite)


def computed_apart(logits_RV, true):
  """Returns the logits. `true` is a condition that always holds and that XLA does not know.

  XLA's CPU backend fuses the maximum over the ids into the product that makes the logits, which then takes twice as long for a
  hundred rows. It does not fuse through a conditional. A single row is left alone: its step takes four times as long apart.
  """
  if len(logits_RV) == 1:
    return logits_RV
  apart = lambda logits_RV: jax.lax.cond(true, lambda x: x, jnp.zeros_like, logits_RV)
  return jax.lax.platform_dependent(logits_RV, cpu=apart, default=lambda logits_RV: logits_RV)


def log_probabilities(logits_RV):
  """Returns (log_softmax of the logits, [R] log of the normaliser: NaN if a logit is NaN or inf, or all are -inf)."""
  shifted_RV = logits_RV.astype(jnp.float32)
  shifted_RV -= shifted_RV.max(axis=-1, keepdims=True)
  log_z_R1 = jnp.log(jnp.exp(shifted_RV).sum(axis=-1, keepdims=True))
  return shifted_RV - log_z_R1, log_z_R1[:, 0]


def ends(ids, beams: BeamConfig):
  """Returns which ids end a hypothesis."""
  return jnp.isin(ids, jnp.asarray(beams.eos_ids, jnp.int32))


def allowed(log_p_BWV, beams: BeamConfig, goes_on):
  """Returns the log-probabilities with -inf for what must not be generated; the others are not normalised anew.

  goes_on: whether hypotheses are too short to end.
  """
  id_V = np.arange(log_p_BWV.shape[-1])
  forbidden_V = np.isin(id_V, beams.forbidden) | (np.isin(id_V, beams.eos_ids) & goes_on)
  return jnp.where(forbidden_V[None, None], -jnp.inf, log_p_BWV)


def same_future(total_BWV, s: Search, beams: BeamConfig):
  """Returns which candidates have the same last `markov_order` ids as a better one, so that nothing sets them apart any more.

  Of equal scores the lowest beam is the better. Candidates that end have no future and stay.
  """
  B, W, V = total_BWV.shape
  m_M = jnp.arange(s.tokens.shape[-1])
  # With the new id itself, these make the last ids.
  recent_M = (m_M > s.length - beams.markov_order) & (m_M < s.length)
  same_BWW = ((s.tokens[:, :, None] == s.tokens[:, None]) | ~recent_M[None, None, None]).all(axis=-1)
  beam_W = jnp.arange(W)[None, :, None]
  worse_BWV = jnp.zeros((B, W, V), bool)
  for w in range(W):
    other_B1V = total_BWV[:, w : w + 1]
    better = (other_B1V > total_BWV) | ((other_B1V == total_BWV) & (w < beam_W))
    worse_BWV |= same_BWW[:, :, w, None] & better
  return worse_BWV & ~ends(jnp.arange(V), beams)[None, None] & (total_BWV > -jnp.inf)
