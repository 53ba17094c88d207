"""The compiled programs of translation: encoding sources, beam search over the decoder, and sampling from it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from decoders.beam.config import BeamConfig
from decoders.beam.hypotheses import Hypotheses
from decoders.beam.search import search
from decoders.state import DecodeState, emit
from jaxlm import caches
from jaxlm.models import seq2seq
from jaxlm.seq2seq_config import Seq2SeqConfig


@dataclasses.dataclass(frozen=True)
class DecoderStep:
  """The `decoders.beam.search.Step` of an encoder-decoder; its context is (parameters, memory)."""

  config: Seq2SeqConfig

  def __call__(self, context: Any, tokens_R, positions_R, cache):
    params, memory = context
    hidden_R1D, cache = seq2seq.hidden(params, self.config, tokens_R[:, None], memory, positions_R[:, None], cache)
    return seq2seq.logits(params, self.config, hidden_R1D[:, 0]), cache


def empty_cache(config: Seq2SeqConfig, sources: int, room: int, width: int = 1) -> Any:
  """Returns an empty cache for `width` rows of each source. Its structure stays the same from the first token on, as the carry of a
  loop needs it."""
  if width > 1 and not config.markov_order:
    return caches.Beams.create(config.decoder, sources, width, room)
  # The rings of a Markov model are so small that beams which change places may copy them.
  cache = seq2seq.empty_cache(config, sources * width, room)
  if isinstance(cache, caches.FullCache):
    return cache.replace(empty=(False,) * len(cache.empty))
  return cache


def state_bytes(config: Seq2SeqConfig, sources: int, room: int, width: int = 1) -> int:
  """Returns the bytes of the decoder's own cache."""
  shapes = jax.eval_shape(lambda: empty_cache(config, sources, room, width))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


@functools.partial(jax.jit, static_argnames='config')
def encode(params, source_BS, lengths_B, *, config: Seq2SeqConfig) -> caches.LayeredCache:
  """Returns the keys and values that the decoder reads of the sources."""
  return seq2seq.memory(params, config, seq2seq.encode(params, config, source_BS, lengths_B), lengths_B)


@functools.partial(jax.jit, static_argnames=('config', 'beams', 'room'))
def beam(
  params, memory, limits_B, length_penalty, min_new_tokens, *, config: Seq2SeqConfig, beams: BeamConfig, room: int
) -> Hypotheses:
  """Returns the best hypotheses of each source; see `decoders.beam.search.search`."""
  B = len(limits_B)
  cache = empty_cache(config, B, room, beams.width)
  return search(
    DecoderStep(config), (params, caches.Shared(memory, beams.width)), cache, jnp.full((B,), config.start_id),
    jnp.zeros(B, jnp.int32), limits_B, length_penalty, beams=beams, max_new_tokens=room, min_new_tokens=min_new_tokens,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=('config', 'room'))
def sample(
  params, memory, limits_B, length_penalty, min_new_tokens, keys_B, values, *, config: Seq2SeqConfig, room: int
) -> Hypotheses:
  """Returns one drawn hypothesis of each source, W = 1. Its score is of the model's own distribution, as a beam's is."""
  B, step, eos_1 = len(limits_B), DecoderStep(config), jnp.asarray([config.eos_id], jnp.int32)
  id_1V = jnp.arange(config.vocab_size)[None]

  def body(carry):
    s, sums_B, steps = carry
    logits_BV, cache = step((params, memory), s.last, s.position, s.cache)
    # The smallest number in place of -inf, which would count as an error.
    forbidden_BV = (id_1V == config.pad_id) | ((id_1V == config.eos_id) & (s.lengths < min_new_tokens)[:, None])
    after = emit(s.replace(cache=cache), jnp.where(forbidden_BV, jnp.finfo(jnp.float32).min, logits_BV), eos_1, values)
    log_p_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    chosen_B = jnp.take_along_axis(log_p_BV, after.last[:, None], axis=1)[:, 0]
    after = after.replace(done=after.done | (after.lengths >= limits_B))
    return after, jnp.where(s.done, sums_B, sums_B + chosen_B), steps + 1

  start = DecodeState(
    tokens=jnp.zeros((B, room), jnp.int32), last=jnp.full((B,), config.start_id, jnp.int32),
    position=jnp.zeros(B, jnp.int32), lengths=jnp.zeros(B, jnp.int32), done=limits_B <= 0, finite=jnp.ones(B, bool),
    keys=keys_B, seen=jnp.zeros((B, config.vocab_size), bool) if 'repetition_penalty' in values else None,
    total=limits_B, cache=empty_cache(config, B, room),
  )  # fmt: skip
  unfinished = lambda carry: ~jnp.all(carry[0].done)
  s, sums_B, steps = jax.lax.while_loop(unfinished, body, (start, jnp.zeros(B, jnp.float32), jnp.int32(0)))
  # Rows that only fill the batch have no token.
  scores_B = sums_B / jnp.power(jnp.maximum(s.lengths, 1).astype(jnp.float32), length_penalty)
  return Hypotheses(s.tokens[:, None], s.lengths[:, None], scores_B[:, None], steps, jnp.zeros(B, jnp.int32), s.finite)
