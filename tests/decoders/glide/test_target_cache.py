"""Which caches a draft can read, and the part of them that a draft with a window reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.glide.target_cache import check_cache, fewest_slots, narrowed
from jaxlm.attention.rule import AttentionRule
from jaxlm.cache_config import KiviConfig
from jaxlm.caches import FullCache, LayeredCache, PooledCache, Sequence
from jaxlm.caches.packed import pack
from jaxlm.caches.slots import everything_of, window_of
from tests.glide_drafts import TARGET, tiny_draft

B, S, K, H = 2, 32, 2, 8
LENGTHS = np.asarray([30, 20])


@pytest.fixture(scope='module')
def memories():
  """Returns (keys and values, a memory of all tokens, one of few, and a quantised one)."""

  @jax.jit
  def make(lengths):
    keys, values = (jax.random.normal(jax.random.key(i), (B, K, S, H)) for i in range(2))
    whole = everything_of(keys, values, lengths)
    lazy = window_of(keys, values, lengths, initial=2, recent=6, room=8)
    return (keys, values), whole, lazy, pack(whole, lengths, KiviConfig(4, 8, 8))

  return make(jnp.asarray(LENGTHS))


def full(arrays):
  keys, values = arrays
  return FullCache((keys,) * 3, (values,) * 3, (False,) * 3)


def test_layers_that_are_read_must_be_whole(memories):
  arrays, whole, lazy, packed = memories
  config = tiny_draft(layers=(1,)).config
  check_cache(config, full(arrays), 5)
  check_cache(config, LayeredCache((lazy, whole, lazy)), 5)
  for layer, reason in ((lazy, 'has evicted 22 tokens there'), (packed, 'is quantised there to 4 bits')):
    with pytest.raises(ValueError, match=f'reads layer 1 of its target, and the cache {reason}'):
      check_cache(config, LayeredCache((whole, layer, whole)), 5)
  with pytest.raises(ValueError, match='is a Sequence there, which the draft cannot read'):
    check_cache(config, Sequence(), 5)
  check_cache(tiny_draft(cross=False).config, LayeredCache((lazy,) * 3), 5)


def test_in_a_pool_only_the_rows_of_the_layer_count(memories):
  """The second row of the lazy pool has evicted fewer tokens; layer 1 of the first sequence is whole, then lazy."""
  _, whole, lazy, _ = memories
  config = tiny_draft(layers=(1,)).config
  cache = PooledCache((whole, lazy), jnp.asarray([[1], [0], [0]]), jnp.asarray([[0], [0], [1]]))
  check_cache(config, cache, 5)
  for row, evicted in ((0, 22), (1, 12)):
    lazy_one = cache.replace(kind=cache.kind.at[1, 0].set(1), row=cache.row.at[1, 0].set(row))
    with pytest.raises(ValueError, match=f'reads layer 1 of its target, and the cache has evicted {evicted} tokens'):
      check_cache(config, lazy_one, 5)
  assert fewest_slots(cache) == 16


def test_a_window_is_read_from_as_few_slots_as_it_needs(memories):
  arrays, whole, *_ = memories
  config, reread, cache = tiny_draft(layers=(1,), window=6).config, 3, full(arrays)
  lengths, rule = jnp.asarray(LENGTHS), AttentionRule('softmax', H**-0.5, window=6)
  part = narrowed(config, cache, lengths, reread)
  assert part.layers[0] is None and part.layers[1].keys.shape[2] == 9 and fewest_slots(cache) is None
  q = jax.random.normal(jax.random.key(2), (B, 4, TARGET.num_heads, H))
  seen = lengths[:, None] - jnp.asarray([[4, 3, 2, 1]])
  np.testing.assert_allclose(part.read(1, q, seen, rule), cache.read(1, q, seen, rule), atol=1e-6)
  # Without a window, and for caches of another kind, there is nothing to take out.
  assert narrowed(tiny_draft(layers=(1,)).config, cache, lengths, reread) is cache
  assert narrowed(config, small := LayeredCache((whole,) * 3), lengths, reread) is small
