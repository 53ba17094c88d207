"""Prefill: reads prompts at once, in chunks, or on top of a cache that already has tokens."""

import functools

import jax
import jax.numpy as jnp

from decoders.programs import Clock
from jaxlm.caches import FullCache
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions


@functools.partial(jax.jit, static_argnames=('config', 'capacity', 'wrap'))
def prefill(params, tokens_BT, lengths_B, total_B, *, config: ModelConfig, capacity: int, wrap=None):
  """Reads the prompts. Returns (float32 logits [B, V] after each row's last token, cache)."""
  cache = FullCache.create(config, tokens_BT.shape[0], capacity)
  cache = cache if wrap is None else wrap(cache, lengths_B)
  return read(params, tokens_BT, jnp.zeros_like(lengths_B), lengths_B, total_B, cache, config=config)


def read(params, tokens_BT, start_B, lengths_B, total_B, cache, *, config: ModelConfig):
  """Reads more tokens: of each row `lengths` tokens, from position `start` on.

  Returns (float32 logits [B, V] after each row's last token, cache).
  """
  rows = jnp.arange(len(tokens_BT))
  positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
  hidden_BTD, cache = functions.hidden(params, config, tokens_BT, positions_BT, cache, total_B)
  last_BD = hidden_BTD[rows, jnp.clip(lengths_B - 1, 0, tokens_BT.shape[1] - 1)]
  return functions.logits(params, config, last_BD), cache


read_on = jax.jit(read, static_argnames='config', donate_argnames='cache')


def prefill_in_chunks(clock: Clock, lm: LanguageModel, padded, total_B, capacity: int, chunk: int, wrap=None):
  """Reads the prompts `chunk` tokens at a time, which bounds the memory of a layer's activations; returns as `prefill`."""
  if lm.config.prefix > chunk:
    raise ValueError(f'{chunk=} cuts a prefix of {lm.config.prefix} tokens, which are read at once.')
  lengths, T = padded.lengths, padded.tokens.shape[1]
  ends = range(chunk, T + chunk, chunk)
  logits_BV, cache = clock.run(
    'prefill', prefill, lm.params, jnp.asarray(padded.tokens[:, :chunk]), jnp.asarray(lengths), total_B,
    config=lm.config, capacity=capacity, wrap=wrap,
  )  # fmt: skip
  for end in ends[1:]:
    start = end - chunk
    if start >= lengths.max():
      break
    more_BV, cache = clock.run(
      'prefill', read_on, lm.params, jnp.asarray(padded.tokens[:, start:end]), jnp.full(len(lengths), start, jnp.int32),
      jnp.asarray(lengths - start), total_B, cache, config=lm.config,
    )  # fmt: skip
    logits_BV = jnp.where(jnp.asarray(lengths > start)[:, None], more_BV, logits_BV)
  return logits_BV, cache
