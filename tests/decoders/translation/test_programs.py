"""What the compiled programs of translation hold in memory."""

import jax
import jax.numpy as jnp
import pytest

from decoders.beam.config import BeamConfig
from decoders.translation import programs
from tests.decoders.translation.models_made import MARKOV, TINY, tiny


def test_no_beam_copies_the_memory_of_its_source():
  B, S, W = 2, 4096, 3
  shape = jax.ShapeDtypeStruct
  source, lengths = shape((B, S), jnp.int32), shape((B,), jnp.int32)
  memory = jax.eval_shape(lambda *args: programs.encode(*args, config=MARKOV), tiny().params, source, lengths)
  args = (tiny(MARKOV).params, memory, lengths, shape((), jnp.float32), shape((), jnp.int32))
  program = programs.beam.lower(*args, config=MARKOV, beams=BeamConfig(W, (2,), (0,)), room=16).compile()
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(memory))
  assert program.memory_analysis().temp_size_in_bytes < held


@pytest.mark.parametrize('config', [TINY, MARKOV], ids=['full', 'ring'])
def test_a_cache_keeps_its_structure_from_the_first_token_on(config):
  cache = programs.empty_cache(config, 2, 4)
  memory = programs.encode(tiny(config).params, jnp.full((2, 3), 4), jnp.array([3, 2]), config=config)
  step = lambda cache: programs.DecoderStep(config)(
    (tiny(config).params, memory), jnp.ones(2, jnp.int32), jnp.zeros(2, jnp.int32), cache
  )[1]
  after = jax.eval_shape(step, cache)
  assert jax.tree.structure(after) == jax.tree.structure(cache)
  assert programs.state_bytes(config, 2, 4) == cache.nbytes
