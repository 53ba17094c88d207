"""The compiled programs of models that predict all target tokens at once, and their refinement by mask-predict.

B sources, C candidate lengths of each source, R = B C rows, T positions. With K iterations (https://arxiv.org/abs/1904.09324):

  y, p = argmax, max of softmax(logits(all masks))
  for t = 1 ... K - 1:   mask the max(1, floor(n (1 - t / K))) of n tokens with the lowest p;  predict these;  update their y and p

A candidate's score is the mean of log p over its n positions. The loop below begins at t = 0, where floor(n (1 - 0 / K)) is all tokens.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

from flax import struct
import jax
import jax.numpy as jnp

from decoders.sampling import first_largest
from decoders.translation import collapse
from jaxlm import caches, losses
from jaxlm.models import nat, seq2seq
from jaxlm.seq2seq_config import Seq2SeqConfig

Collapse = Literal['none', 'runs', 'ctc']
"""What becomes of equal neighbours in a translation: they stay, they become one token, or they are collapsed as CTC alignments."""
SHORTEST = 2
"""Fewest positions of a candidate: a token and its EOS, as in Mask-Predict."""


@struct.dataclass
class Encoded:
  """What the decoder needs of the sources."""

  memory: caches.LayeredCache
  states: jax.Array | None  # [B, S, D] where the decoder reads copies of them
  source_lengths: jax.Array  # [B], int32
  lengths: jax.Array  # [B, C], int32: positions of each candidate, the likeliest length first
  distinct: jax.Array  # [B, C], bool: no candidate before it has the same length
  finite: jax.Array  # [B], bool


@struct.dataclass
class Predictions:
  """Translations, W of each source, the best first."""

  tokens: jax.Array  # [B, W, T], int32
  lengths: jax.Array  # [B, W], int32
  scores: jax.Array  # [B, W], float32; -inf where a source has fewer candidates
  finite: jax.Array  # [B], bool
  words: jax.Array  # [B], int32: tokens of the best one before equal neighbours become one
  repeated: jax.Array  # [B], int32: those of them that are equal to the token before them


@functools.partial(jax.jit, static_argnames=('config', 'candidates'))
def encode(params, source_BS, source_lengths_B, limits_B, *, config: Seq2SeqConfig, candidates: int) -> Encoded:
  """Returns the encoded sources and their likeliest target lengths.

  Args:
    limits_B: most positions of each source's candidates.
    candidates: C; 1 for a model with upsampling, whose only candidate has the length `limits_B`.
  """
  states_BSD, log_p_BN = nat.encode(params, config, source_BS, source_lengths_B)
  memory = seq2seq.memory(params, config, states_BSD, source_lengths_B)
  if log_p_BN is None:
    lengths_BC, distinct_BC = limits_B[:, None], jnp.ones((len(limits_B), 1), bool)
    finite_B = jnp.ones(len(limits_B), bool)
  else:
    lengths_BC, distinct_BC = candidate_lengths(log_p_BN, limits_B, candidates)
    finite_B = ~jnp.isnan(log_p_BN).any(axis=1)
  kept = states_BSD if config.nat.decoder_input == 'uniform_copy' else None
  return Encoded(memory, kept, source_lengths_B, lengths_BC, distinct_BC, finite_B)


def candidate_lengths(log_p_BN, limits_B, candidates: int):
  """Returns (the likeliest lengths [B, C] up to each limit, raised to SHORTEST; which of them no earlier candidate has).

  A source with fewer lengths than candidates has candidates that are not distinct.
  """
  number_1N = jnp.arange(log_p_BN.shape[1])[None]
  found_BC, lengths_BC = jax.lax.top_k(jnp.where(number_1N <= limits_B[:, None], log_p_BN, -jnp.inf), candidates)
  lengths_BC = jnp.clip(lengths_BC, jnp.minimum(SHORTEST, limits_B)[:, None], limits_B[:, None])
  same_BCC = lengths_BC[:, :, None] == lengths_BC[:, None, :]
  earlier_1CC = jnp.tri(candidates, k=-1, dtype=bool)[None]
  return lengths_BC, (found_BC > -jnp.inf) & ~(same_BCC & earlier_1CC).any(axis=2)


def remask(log_p_RT, lengths_R, count_R):
  """Returns which `count_R` tokens of each row have the lowest probability; of equal ones the first."""
  valid_RT = collapse.within(lengths_R, log_p_RT.shape[1])
  order_RT = jnp.argsort(jnp.where(valid_RT, log_p_RT, jnp.inf), axis=1, stable=True)
  rank_RT = jnp.argsort(order_RT, axis=1)
  return valid_RT & (rank_RT < count_R[:, None])


def masked_count(lengths, iteration, iterations):
  """Returns how many tokens are masked before an iteration, floor(n (1 - t / K)) but at least 1; in whole numbers it is exact."""
  return jnp.maximum(lengths * (iterations - iteration) // iterations, 1)


def predict(params, config: Seq2SeqConfig, hidden_RTD):
  """Returns (the likeliest token of each position but padding, its log-probability). Few logits are held at a time.

  The mask may be predicted: for CTC it is the blank, for AXE the token that stands for nothing, and others have not learned it.
  """

  def likeliest(hidden_ND):
    logits_NV = seq2seq.logits(params, config, hidden_ND)
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    allowed_NV = logits_NV.at[:, config.pad_id].set(-jnp.inf)
    return first_largest(allowed_NV), allowed_NV.max(axis=-1) - log_z_N

  R, T, D = hidden_RTD.shape
  size = max(1, min(R * T, losses.slice_logits() // config.vocab_size))
  slices = -(-R * T // size)
  hidden_ND = jnp.pad(hidden_RTD.reshape(-1, D), ((0, slices * size - R * T), (0, 0)))
  found = jax.lax.map(likeliest, hidden_ND.reshape(slices, size, D))
  return tuple(x.reshape(-1)[: R * T].reshape(R, T) for x in found)


@functools.partial(jax.jit, static_argnames=('config', 'room', 'num_return', 'collapsed'))
def decode(
  params, encoded: Encoded, iterations, *, config: Seq2SeqConfig, room: int, num_return: int, collapsed: Collapse
) -> Predictions:
  """Returns the best translations of each source.

  Args:
    iterations: int32 scalar, K of the module's docstring; 1 for models that cannot read known tokens.
    room: T, at least the longest candidate.
    num_return: W, at most C.
    collapsed: what becomes of equal neighbours.
  """
  B, C = encoded.lengths.shape
  lengths_R, memory = encoded.lengths.reshape(-1), caches.Shared(encoded.memory, C)
  if encoded.states is not None:
    each = lambda x: jnp.repeat(x, C, axis=0)
    copies_RTD = nat.uniform_copy(each(encoded.states), each(encoded.source_lengths), lengths_R, room)

  def refine(t, carry):
    tokens_RT, log_p_RT = carry
    masked_RT = remask(log_p_RT, lengths_R, masked_count(lengths_R, t, iterations))
    inputs = copies_RTD if encoded.states is not None else jnp.where(masked_RT, config.mask_id, tokens_RT)
    new_RT, new_log_p_RT = predict(params, config, nat.hidden(params, config, inputs, lengths_R, memory))
    return jnp.where(masked_RT, new_RT, tokens_RT), jnp.where(masked_RT, new_log_p_RT, log_p_RT)

  start = jnp.zeros((B * C, room), jnp.int32), jnp.zeros((B * C, room), jnp.float32)
  tokens_RT, log_p_RT = jax.lax.fori_loop(0, iterations, refine, start)
  # Positions after a candidate's length are never masked, so that their log-probability stays 0.
  scores_BC = (log_p_RT.sum(axis=1) / jnp.maximum(lengths_R, 1)).reshape(B, C)
  finite_B = encoded.finite & jnp.isfinite(scores_BC).all(axis=1)
  scores_BC = jnp.where(encoded.distinct, scores_BC, -jnp.inf)
  best_BW = jnp.argsort(-scores_BC, axis=1, stable=True)[:, :num_return]
  take = lambda x: jnp.take_along_axis(x, best_BW.reshape(*best_BW.shape, *(1,) * (x.ndim - 2)), axis=1)
  tokens_BWT, lengths_BW = take(tokens_RT.reshape(B, C, room)), take(encoded.lengths)
  found = _text(tokens_BWT.reshape(-1, room), lengths_BW.reshape(-1), config, collapsed)
  tokens_BWT, lengths_BW, words_BW, repeated_BW = (x.reshape(B, num_return, *x.shape[1:]) for x in found)
  return Predictions(tokens_BWT, lengths_BW, take(scores_BC), finite_B, words_BW[:, 0], repeated_BW[:, 0])


def _text(tokens_NT, lengths_N, config: Seq2SeqConfig, collapsed: Collapse) -> tuple[Any, Any, Any, Any]:
  """Returns (tokens, lengths) of the text in rows, and of how many tokens how many were equal to the one before."""
  fill = config.pad_id
  if collapsed == 'ctc':
    tokens_NT, lengths_N = collapse.collapse_ctc(tokens_NT, lengths_N, config.mask_id, fill)
  no_text = (config.eos_id, config.pad_id, config.mask_id)
  tokens_NT, lengths_N = collapse.without(tokens_NT, lengths_N, no_text, fill)
  words_N, repeated_N = lengths_N, collapse.repeats(tokens_NT, lengths_N).sum(axis=1, dtype=jnp.int32)
  if collapsed == 'runs':
    tokens_NT, lengths_N = collapse.deduplicate(tokens_NT, lengths_N, fill)
  return tokens_NT, lengths_N, words_N, repeated_N
