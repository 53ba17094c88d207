"""What the compiled programs of translation hold in memory, and that ids alone may be what they hold."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from decoders.beam.config import BeamConfig
from decoders.beam.search import search
from decoders.translation import programs
from jaxlm import caches
from tests.decoders.translation.models_made import MARKOV, SOURCES, TINY, UNROLL, tiny


def test_no_beam_copies_the_memory_of_its_source():
  B, S, W = 2, 4096, 3
  shape = jax.ShapeDtypeStruct
  source, lengths = shape((B, S), jnp.int32), shape((B,), jnp.int32)
  memory = jax.eval_shape(lambda *args: programs.encode(*args, config=MARKOV), tiny().params, source, lengths)
  args = (tiny(MARKOV).params, memory, lengths, shape((), jnp.float32), shape((), jnp.int32))
  program = programs.beam.lower(*args, config=MARKOV, beams=BeamConfig(W, (2,), (0,)), room=16).compile()
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(memory))
  assert program.memory_analysis().temp_size_in_bytes < held


@pytest.mark.parametrize('width', [1, 3])
@pytest.mark.parametrize('config', [TINY, MARKOV, UNROLL], ids=['full', 'ring', 'ids'])
def test_a_cache_keeps_its_structure_from_the_first_token_on(config, width):
  cache = programs.empty_cache(config, 2, 4, width)
  memory = programs.encode(tiny(config).params, jnp.full((2, 3), 4), jnp.array([3, 2]), config=config)
  context = tiny(config).params, caches.Shared(memory, width)
  step = lambda cache: programs.DecoderStep(config)(
    context, jnp.ones(2 * width, jnp.int32), jnp.zeros(2 * width, jnp.int32), cache
  )[1]
  after = jax.eval_shape(step, cache)
  assert jax.tree.structure(after) == jax.tree.structure(cache)
  assert programs.state_bytes(config, 2, 4, width) == cache.nbytes


ONE_LAYER = MARKOV.replace(decoder_layers=1)


@pytest.mark.parametrize(
  'ring, ids',
  [
    (MARKOV, MARKOV),
    (MARKOV.replace(position='relative'), MARKOV.replace(position='relative')),
    (MARKOV.replace(markov_mode='split'), MARKOV.replace(markov_mode='split')),
    (ONE_LAYER.replace(markov_mode='naive'), ONE_LAYER.replace(markov_mode='unroll')),
  ],
  ids=['transparent', 'relative', 'split', 'unroll'],
)
def test_the_last_ids_find_the_hypotheses_that_the_ring_finds(ring, ids):
  """Check 6 of the Markov decoder: beams that carry k ids instead of keys and values give the same tokens.

  The mode 'unroll' has no ring. With one layer it is the mode 'naive', which has one.
  """
  width, room, rows = 3, 10, len(SOURCES)
  params, beams = tiny(ring).params, BeamConfig(width, (ring.eos_id,), (ring.pad_id,))
  source = jnp.asarray([row + [ring.eos_id] * (8 - len(row)) for row in SOURCES])
  memory = programs.encode(params, source, jnp.asarray([len(row) + 1 for row in SOURCES]), config=ring)

  @functools.partial(jax.jit, static_argnums=0)
  def found(config, cache):
    return search(
      programs.DecoderStep(config), (params, caches.Shared(memory, width)), cache, jnp.full(rows, config.start_id),
      jnp.zeros(rows, jnp.int32), jnp.full(rows, room), 1.0, beams=beams, max_new_tokens=room,
    )  # fmt: skip

  expected = found(ring, programs.empty_cache(ring, rows, room, width))
  actual = found(ids, caches.RecentTokens.create(rows * width, ids.markov_order))
  assert (expected.lengths[:, 0] > 4).any()
  chex.assert_trees_all_equal(actual.tokens, expected.tokens)
  chex.assert_trees_all_close(actual.scores, expected.scores, atol=1e-5)


def test_no_step_copies_the_cache_of_the_beams():
  """Beams change places by what they remember of the slots; the program has no array but the cache that is as large."""
  B, W, room = 2, 3, 512
  shape = jax.ShapeDtypeStruct
  lengths = shape((B,), jnp.int32)
  memory = jax.eval_shape(
    lambda *args: programs.encode(*args, config=TINY), tiny().params, shape((B, 4), jnp.int32), lengths
  )
  args = (tiny().params, memory, lengths, shape((), jnp.float32), shape((), jnp.int32))
  program = programs.beam.lower(*args, config=TINY, beams=BeamConfig(W, (2,), (0,)), room=room).compile()
  held = programs.state_bytes(TINY, B, room, W)
  assert program.memory_analysis().temp_size_in_bytes < 1.5 * held
