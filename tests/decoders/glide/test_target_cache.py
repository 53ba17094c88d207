"""Which caches a draft can read, also while it drafts, and the part of them that a draft with a window reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import simlayerkv
from decoders.glide import GlideDecoding
from decoders.glide.target_cache import check_cache, fewest_slots, narrowed
from decoders.simlayerkv import LazyConfig, LazyMemory
from decoders.strategies import WholeMemory
from jaxlm.attention.rule import AttentionRule
from jaxlm.cache_config import KiviConfig
from jaxlm.caches import FullCache, LayeredCache, PooledCache, Sequence
from jaxlm.caches.packed import pack
from jaxlm.caches.slots import everything_of, window_of
from tests.glide_drafts import TARGET, tiny_draft
from tests.models import slow, tiny_model

B, S, K, H = 2, 32, 2, 8
LENGTHS = np.asarray([30, 20])
PROMPTS = [list(range(1, 13)), list(range(20, 45))]
TREES = GlideDecoding(guard=False)
CHAIN = TREES.replace(bins=(1,))
DEEP = {'num_layers': 2, 'block': 4}


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


@pytest.mark.parametrize('layers, window, works', [((1,), 5, True), ((1,), 6, False), ((0, 1), 1, False)])
def test_a_ring_is_for_one_layer_with_room_for_its_window(memories, layers, window, works):
  (keys, values), whole, *_ = memories
  ring = window_of(keys, values, jnp.asarray(LENGTHS), initial=0, recent=10, room=None, spare=5)
  config = tiny_draft(num_layers=len(layers), layers=layers, window=window).config
  if works:
    check_cache(config, LayeredCache((whole, ring, whole)), 5)
  else:
    with pytest.raises(
      ValueError, match='layer 1 of its target, and the cache holds only the first 0 and the latest 10'
    ):
      check_cache(config, LayeredCache((whole, ring, whole)), 5)


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


class Kept(WholeMemory):
  """After the prompt, each layer keeps what `of` says."""

  def __init__(self, of):
    self.of = of

  def compress(self, state, advance, config, plan):
    cache, read = state.cache, state.position  # The last token is not read yet.
    layers = [self.of[i](cache.keys[i], cache.values[i], read) for i in range(config.num_layers)]
    return [(np.arange(len(state.lengths)), state.replace(cache=LayeredCache(tuple(layers))))]


def lazy(keys, values, lengths):
  return window_of(keys, values, lengths, initial=1, recent=3, room=30)


def test_layers_that_the_draft_does_not_read_may_be_lazy():
  memory = lambda: Kept([lazy, everything_of, everything_of])
  lm, draft = tiny_model(TARGET), tiny_draft(**DEEP)
  plain = decoders.generate(lm, PROMPTS, max_new_tokens=20, memory=memory())
  out = decoders.glide.generate(lm, draft, PROMPTS, max_new_tokens=20, memory=memory(), glide=CHAIN)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  with pytest.raises(ValueError, match='reads layer 0 of its target, and the cache has evicted 21 tokens there'):
    decoders.glide.generate(lm, tiny_draft(layers=(0,)), PROMPTS, max_new_tokens=20, memory=memory(), glide=TREES)


@pytest.mark.parametrize('glide', [TREES, *slow(CHAIN)], ids=['tree', 'chain'])
def test_the_memory_of_simlayerkv_keeps_the_layers_of_the_draft(glide):
  lm, draft = tiny_model(TARGET), tiny_draft(**DEEP)
  lazy = LazyConfig(threshold=0.0, n_initial=1, n_recent=3, stage='prefill', exempt_layers=(1, 2))
  expected = simlayerkv.generate(lm, PROMPTS, max_new_tokens=20, lazy=lazy)
  memory = LazyMemory(lazy, lm.config)
  out = decoders.glide.generate(lm, draft, PROMPTS, max_new_tokens=20, memory=memory, glide=glide)
  np.testing.assert_array_equal(out.tokens, expected.tokens)
  assert out.stats['lazy_layers'] == expected.stats['lazy_layers'] == [[0], [0]]


@pytest.mark.slow
def test_a_ring_is_read_by_a_draft_with_a_smaller_window():
  lm = tiny_model(TARGET)
  ring = lambda *args: window_of(*args, initial=0, recent=16, room=None, spare=5)
  settings = dict(max_new_tokens=20, memory=Kept([everything_of, everything_of, ring]))
  plain = decoders.generate(lm, PROMPTS, **settings)
  out = decoders.glide.generate(lm, tiny_draft(window=5), PROMPTS, glide=TREES, **settings)
  np.testing.assert_array_equal(out.tokens, plain.tokens)


@pytest.mark.slow
def test_a_quantised_layer_is_refused_by_its_number():
  packed = lambda keys, values, lengths: pack(everything_of(keys, values, lengths), lengths, KiviConfig(4, 8, 8))
  for layers, message in (
    ((1,), 'reads layer 1 .* is quantised there to 4 bits'),
    ((0,), 'A quantised cache rounds tokens'),
  ):
    with pytest.raises(ValueError, match=message):
      memory = Kept([everything_of, packed, everything_of])
      decoders.glide.generate(tiny_model(TARGET), tiny_draft(layers=layers), PROMPTS, memory=memory, glide=TREES)


def test_a_tree_must_fit_into_the_context_and_the_cache():
  lm, draft = tiny_model(TARGET), tiny_draft(layers=(0,))
  with pytest.raises(ValueError, match='A tree of 201 tokens in depth is larger than the context of the model, 128'):
    decoders.glide.generate(lm, draft, PROMPTS, glide=TREES.replace(max_draft=200, bins=(1,)))
  memory = Kept([everything_of, everything_of, lambda *args: window_of(*args, initial=0, recent=3, room=None)])
  with pytest.raises(
    ValueError, match='A tree of 5 tokens in depth is larger than the cache, which has a layer of 3 slots'
  ):
    decoders.glide.generate(lm, draft, PROMPTS, memory=memory, glide=CHAIN)
