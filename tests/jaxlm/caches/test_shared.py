"""One memory read by several rows equals a copy for each of them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import caches
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.slots import everything_of


def test_shared_reading_equals_reading_copies():
  B, W, T, S, N, K, H = 3, 2, 2, 5, 4, 2, 8
  draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  lengths = jnp.array([5, 2, 3])
  cache = caches.LayeredCache((everything_of(draw(0, B, K, S, H), draw(1, B, K, S, H), lengths),))
  shared = caches.Shared(cache, W)
  assert isinstance(shared, caches.Readable) and shared.nbytes == cache.nbytes
  q, positions, rule = (
    draw(2, B * W, T, N, H),
    jnp.arange(B * W * T).reshape(B * W, T),
    AttentionRule('softmax', scale=0.3, causal=False),
  )
  copies = cache.reordered(jnp.repeat(jnp.arange(B), W))
  read = lambda cache, lengths=None: np.asarray(cache.read(0, q, positions, rule, lengths))
  np.testing.assert_allclose(read(shared), read(copies), atol=1e-6)
  fewer = jnp.array([4, 1, 3])
  np.testing.assert_allclose(read(shared, fewer), read(copies, jnp.repeat(fewer, W)), atol=1e-6)
  assert np.abs(read(shared, fewer) - read(shared)).max() > 1e-3
  assert repr(shared).startswith('Shared(each row is read by 2; LayeredCache(')
