"""What a draft finds by itself is what constrained beam search finds, from the history on and from beams on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from decoders.atspeed import drafting
from decoders.atspeed.config import AtSpeedConfig
from decoders.beam import constrained
from decoders.beam.prefixes import Prefixes, candidates, extended
from jaxlm.data.item_trie import ItemTrie
from tests.decoders.beam.tables import TableReader, tables

V, L, K = 6, 4, 4
HISTORIES = np.array([[1, 2, 3], [4, 0, 0], [2, 2, 0]], np.int32)
LENGTHS = np.array([3, 1, 2], np.int32)
CODES = np.unique(np.random.default_rng(0).integers(0, V, (60, L)), axis=0)
READER = TableReader()


@functools.partial(jax.jit, static_argnames='config')
def run(params, trie, *, config):
  """Returns the nodes of three steps drafted after the history, of all steps after beams of one token, and the leaves of a search."""
  arrays = (jnp.asarray(HISTORIES), jnp.asarray(LENGTHS))
  after_prompt, cache = drafting.after_prompt(READER, params, *arrays, trie, None, None, steps=L - 1, config=config)
  state, _ = READER.prompt(params, *arrays, None)
  beams, _ = extended(candidates(READER.logits(params, state[:, None]), Prefixes.roots(len(HISTORIES)), trie), K)
  after_beams = drafting.after_beams(
    READER,
    params,
    cache,
    arrays[1],
    beams,
    jnp.ones(len(HISTORIES), jnp.int32),
    trie,
    None,
    None,
    steps=L - 1,
    config=config,
  )
  found = constrained.search(params, *arrays, trie, reader=READER, width=K)
  return beams.nodes, after_prompt.nodes, after_beams.nodes, found.leaves


def test_drafting_is_constrained_beam_search():
  trie = ItemTrie.from_ids(CODES)
  for seed in range(20):
    first, after_prompt, after_beams, leaves = map(
      np.asarray, run(tables(seed, V), trie, config=AtSpeedConfig(k=K, beam=K))
    )
    np.testing.assert_array_equal(after_prompt[:, 0], first)
    np.testing.assert_array_equal(after_prompt[:, 1:], after_beams[:, :-1])
    np.testing.assert_array_equal(after_beams[:, -1], leaves)


def test_nested_drafts_begin_with_the_search_of_fewer_beams():
  trie, params = ItemTrie.from_ids(CODES), tables(0, V)
  nested = AtSpeedConfig(k=K, beam=7, order='nested')
  _, after_prompt, after_beams, leaves = map(np.asarray, run(params, trie, config=nested))
  _, few, few_after_beams, _ = map(np.asarray, run(params, trie, config=AtSpeedConfig(k=K, beam=K)))
  np.testing.assert_array_equal(after_prompt[:, :, :K], few)
  np.testing.assert_array_equal(after_beams[:, :, :K], few_after_beams)
  for nodes in after_prompt.reshape(-1, 7):
    there = nodes[nodes >= 0]
    assert len(set(there.tolist())) == len(there)
