"""A recorder attends as the sequence does, and what it recorded is read as a cache."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import LayeredCache, Readable, Sequence
from jaxlm.caches.recorded import Recorder

B, T, N, K, H = 2, 5, 4, 2, 8
RULE = AttentionRule('softmax', H**-0.5)


@jax.jit
def recorded():
  """Returns (outputs of layers 0 to 2, outputs of a sequence, the cache of layers 0 and 2, the queries)."""
  keys = jax.random.split(jax.random.key(0), 9)
  normal = lambda key, heads: jax.random.normal(key, (B, T, heads, H))
  at, recorder, mine, plain, queries = jnp.broadcast_to(jnp.arange(T), (B, T)), Recorder(Sequence(), (2, 0)), [], [], []
  for layer in range(3):
    q, k, v = normal(keys[layer], N), normal(keys[3 + layer], K), normal(keys[6 + layer], K)
    out, recorder = recorder.attend(layer, q, k, v, at, RULE)
    mine.append(out)
    plain.append(Sequence().attend(layer, q, k, v, at, RULE)[0])
    queries.append(q)
  mask = jnp.arange(T)[None] < jnp.asarray([[T], [3]])
  return mine, plain, recorder.cache(3, mask), queries


def test_outputs_are_those_of_the_sequence_and_layers_are_read_by_their_numbers():
  mine, plain, cache, queries = recorded()
  np.testing.assert_array_equal(mine, plain)
  assert isinstance(cache, LayeredCache) and isinstance(cache, Readable) and cache.layers[1] is None
  at = jnp.broadcast_to(jnp.arange(T), (B, T))
  for layer in (0, 2):
    read = cache.read(layer, queries[layer], at, RULE)
    np.testing.assert_allclose(read[0], plain[layer][0], atol=1e-6)
    # The second row has three tokens; later queries see no more than these.
    np.testing.assert_allclose(read[1, :3], plain[layer][1, :3], atol=1e-6)
    assert np.abs(read[1, 3:] - plain[layer][1, 3:]).max() > 1e-2
