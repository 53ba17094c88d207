"""Speculative beam search as one traced function, for models that are tables."""

import jax
import jax.numpy as jnp

from decoders.atspeed import drafting, rounds
from decoders.atspeed.config import AtSpeedConfig
from decoders.beam.reader import ModelReader
from tests.decoders.beam.tables import TableReader


def speculate(
  params, draft_params, tokens, lengths, trie, keys=None, closed=None, *, config: AtSpeedConfig, reader=TableReader(),
  drafter: ModelReader | TableReader = TableReader(),
) -> rounds.Round:  # fmt: skip
  """Returns the state after as many rounds as any search needs."""
  fold = lambda number, part: (
    None if keys is None else jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, number), part))(keys)
  )
  steps = min(config.gamma, trie.depth - 1)
  drafted, cache = drafting.after_prompt(
    drafter, draft_params, tokens, lengths, trie, closed, fold(0, 0), steps=steps, config=config
  )
  state = rounds.first(reader, params, tokens, lengths, drafted, trie, closed, fold(0, 1), config=config)
  steps = min(config.gamma, trie.depth - 2)

  def later(number, state):
    drafted = None
    if steps:
      drafted = drafting.after_beams(
        drafter,
        draft_params,
        cache,
        lengths,
        state.beams,
        state.depth,
        trie,
        closed,
        fold(number, 0),
        steps=steps,
        config=config,
      )
    return rounds.later(reader, params, state, drafted, trie, closed, fold(number, 1), config=config)

  return jax.lax.fori_loop(jnp.int32(1), jnp.int32(trie.depth), later, state)
