"""Memories that have forgotten tokens, against a full cache whose mask hides them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.simlayerkv.config import cache_bytes, compression_ratio
from jaxlm.attention.attend import attend as attend_densely
from jaxlm.attention.rule import layer_rule
from jaxlm.caches import FullCache, LayeredCache, packed, slots, voted
from jaxlm.caches.kivi import KiviConfig
from jaxlm.caches.layered import pooled
from jaxlm.caches.rows import write_rows
from jaxlm.caches.slots import EMPTY
from tests.lazy_models import MODEL, PROMPTS, Masked, cut, forced, one_by_one, padded, read
from tests.models import TINY, apply, slow, tiny_model

# Each in one program: run eagerly, each operation would be compiled apart.
everything_of, extend, attend = jax.jit(slots.everything_of), jax.jit(slots.extend), jax.jit(attend_densely)
window_of = jax.jit(slots.window_of, static_argnames=('initial', 'recent', 'room', 'spare'))
heavy_of = jax.jit(voted.heavy_of, static_argnames=('total', 'recent', 'pool', 'room'))
pack = jax.jit(packed.pack, static_argnums=2)


def tokens(seed, *shape):
  return np.random.default_rng(seed).integers(0, 50, shape, np.int32)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('ring', [False, True])
@pytest.mark.parametrize(
  'variant',
  [
    {},
    *slow(
      {'attention': 'sigmoid', 'position': 'learned'}, {'num_kv_heads': 4}, {'num_kv_heads': 1, 'position': 'alibi'}
    ),
  ],
)
def test_cut_layers_equal_a_full_cache_with_a_mask(variant, ring):
  config = TINY.replace(**variant)
  lm, (tokens_BT, lengths), new_BT = tiny_model(config), padded(), tokens(9, 3, 20)
  cache = read(lm.params, tokens_BT, config=config)
  for lazy_L in ((False, True), (True, True)):
    masked = Masked(cache, jnp.asarray(lazy_L), lengths, 2, 8, ring)
    expected = forced(lm.params, masked, lengths, new_BT, config=config)
    lazy = cut(cache, lazy_L, lengths, 2, 8, None if ring else 20)
    actual = forced(lm.params, lazy, lengths, new_BT, config=config)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
    one_off = forced(lm.params, masked.replace(recent=7), lengths, new_BT, config=config)
    assert abs(one_off[0] - expected[0]).max() > 1e-4  # The mask is not void.


@pytest.mark.parametrize('ring', [False, True])
@pytest.mark.parametrize('T', [14, *slow(3)])
def test_many_tokens_at_once_equal_one_by_one(ring, T):
  lm, (tokens_BT, lengths), new_BT = tiny_model(MODEL), padded(), tokens(8, 3, 20)
  cache = cut(read(lm.params, tokens_BT, config=MODEL), (True, False, True), lengths, 2, 8, None if ring else 20)
  expected = forced(lm.params, cache, lengths, new_BT, config=MODEL)
  positions = lengths[:, None] + np.arange(T, dtype=np.int32)
  logits, cache = apply(MODEL, lm.params, new_BT[:, :T], positions, cache)
  rest = forced(lm.params, cache, lengths + T, new_BT[:, T:], config=MODEL)
  np.testing.assert_allclose(np.concatenate([logits, rest], axis=1), expected, atol=1e-5)


def held(window):
  return [sorted(p for p in row if p != EMPTY) for row in window.positions.tolist()]


@pytest.mark.parametrize('room', [None, 3])
def test_a_window_holds_the_first_and_the_latest_tokens_once(room):
  keys = np.broadcast_to(np.arange(40.0)[:, None], (4, 2, 40, 8))
  lengths = (40, 11, 10, 1)
  window = window_of(keys, keys, np.array(lengths), initial=2, recent=8, room=room)
  assert window.keys.shape[2] == 10 + (room or 0)
  assert held(window) == [[0, 1, *range(max(2, n - 8), n)] if n > 1 else [0] for n in lengths]
  there = np.asarray(window.positions) != EMPTY
  np.testing.assert_array_equal(np.asarray(window.keys)[:, 1, :, 3][there], np.asarray(window.positions)[there])


def test_sizes_are_the_formulas():
  lm, (tokens_BT, lengths) = tiny_model(MODEL), padded([PROMPTS[0]])
  cache = read(lm.params, tokens_BT, config=MODEL)
  lazy = cut(cache, (True, False, True), lengths, 2, 8, None)
  arrays = [x for layer in lazy.layers for x in (layer.keys, layer.values)]
  assert sum(x.nbytes for x in arrays) == cache_bytes(MODEL, 64, 2, 10)
  bookkeeping = 4 * (2 * (10 + 1) + 64 + 1)
  assert lazy.nbytes == cache_bytes(MODEL, 64, 2, 10) + bookkeeping
  assert compression_ratio(MODEL, 64, 2, 10) == pytest.approx(3 * 64 / (64 + 2 * 10))
  llama = MODEL.replace(num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, dtype='bfloat16')
  assert cache_bytes(llama, 32768, 0, 1028) == 4 * 2**30
  assert round(cache_bytes(llama, 32768, 16, 1028) / 2**30, 3) == 2.063
  table = {3500: (1.21, 1.55, 3.40), 7500: (1.28, 1.76, 7.30), 31500: (1.32, 1.94, 30.6), 32768: (1.32, 1.94, 31.9)}
  for T, expected in table.items():  # 8, 16 and 32 lazy layers
    actual = [compression_ratio(llama, T, n, 1028) for n in (8, 16, 32)]
    np.testing.assert_allclose(actual, expected, atol=0.05, rtol=2e-3)


def in_pools(cache, lazy_BL, lengths, recent=8, room=20, quant=None):
  """A pooled cache of rows with their own lazy layers."""
  keys, values = jax.device_get((cache.keys, cache.values))

  def row(layer, b):
    one = keys[layer][b : b + 1], values[layer][b : b + 1], lengths[b : b + 1]
    memory = window_of(*one, initial=2, recent=recent, room=room) if lazy_BL[b][layer] else everything_of(*one)
    return memory if quant is None else pack(memory, lengths[b : b + 1], quant)

  return pooled(np.asarray(lazy_BL).T.astype(int), 2, row, lambda layer: None)


EACH = ((True, False, True), (False, False, True), (True, True, False))


@pytest.mark.parametrize('ring', [True, *slow(False)])
def test_pools_with_each_rows_own_layers_equal_a_full_cache_with_a_mask(ring):
  lm, (tokens_BT, lengths), new_BT = tiny_model(MODEL), padded(), tokens(9, 3, 20)
  cache = read(lm.params, tokens_BT, config=MODEL)
  pools = in_pools(cache, EACH, lengths, room=None if ring else 20)
  assert [len(pool.keys) for pool in pools.pools] == [4, 5]
  actual = forced(lm.params, pools, lengths, new_BT, config=MODEL)
  for b, lazy_L in enumerate(EACH):
    masked = Masked(cache, jnp.asarray(lazy_L), lengths, 2, 8, ring)
    expected = forced(lm.params, masked, lengths, new_BT, config=MODEL)[b]
    np.testing.assert_allclose(actual[b], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('ring', [False, True])
@pytest.mark.parametrize('heads', [4, 2, 1])
def test_many_patterns_over_many_steps(heads, ring):
  config = MODEL.replace(num_kv_heads=heads, num_layers=5, max_length=128)
  lm, (tokens_BT, lengths) = tiny_model(config), padded()
  _, cache = apply(config, lm.params, tokens_BT, cache=FullCache.create(config, 3, 128))
  new_BT = tokens(9, 3, 64)
  for lazy_L in np.random.default_rng(heads).random((20, 5)) < 0.5:
    pools = in_pools(cache, [lazy_L.tolist()] * 3, lengths, room=None if ring else 64)
    actual = forced(lm.params, pools, lengths, new_BT, config=config)
    expected = forced(
      lm.params, Masked(cache, jnp.asarray(lazy_L), lengths, 2, 8, ring), lengths, new_BT, config=config
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.slow
def test_programs_serve_all_patterns_with_as_many_full_layers():
  lm, (tokens_BT, lengths) = tiny_model(MODEL), padded(PROMPTS[:1])
  cache, new_BT = read(lm.params, tokens_BT, config=MODEL), jnp.ones((1, 3), jnp.int32)
  step = jax.jit(lambda params, cache, tokens: one_by_one.__wrapped__(params, cache, lengths, tokens, config=MODEL))
  rng = np.random.default_rng(0)
  counts = set()
  for lazy_L in rng.random((50, 3)) < 0.5:
    step(lm.params, in_pools(cache, [lazy_L], lengths), new_BT)
    counts.add(int(lazy_L.sum()))
  assert counts == {0, 1, 2, 3} and step._cache_size() == 4


@pytest.mark.parametrize('kind', ['append', 'ring', 'packed'])
def test_tokens_of_padding_leave_no_trace(kind):
  rule, lengths, count = layer_rule(MODEL, 0), np.array([40, 23, 5], np.int32), np.array([6, 1, 3], np.int32)
  keys, values = normal(0, 3, 2, 64, 8), normal(1, 3, 2, 64, 8)
  new = normal(2, 3, 6, 4, 8), normal(3, 3, 6, 2, 8), normal(4, 3, 6, 2, 8)

  def made(rows):
    room = None if kind == 'ring' else 20
    memory = window_of(keys[rows], values[rows], lengths[rows], initial=2, recent=8, room=room)
    return pack(memory, lengths[rows], KiviConfig(4, group=8, residual=8)) if kind == 'packed' else memory

  positions = lengths[:, None] + np.arange(6, dtype=np.int32)
  out, memory = extend(made(slice(0, 3)), *new, positions, rule, np.arange(6)[None] < count[:, None])
  query = normal(5, 3, 1, 4, 8), normal(6, 3, 1, 2, 8), normal(7, 3, 1, 2, 8)
  after, _ = extend(memory, *query, (lengths + count)[:, None], rule)
  out, after = np.asarray(out), np.asarray(after)
  for b, n in enumerate(count.tolist()):
    row = slice(b, b + 1)
    alone, memory = extend(made(row), *(x[row, :n] for x in new), positions[row, :n], rule)
    if (
      n > 1 or kind != 'packed'
    ):  # Packed, a single token leaves the exact ones before it is read, of several none does.
      np.testing.assert_allclose(out[row, :n], alone, atol=1e-5)
    alone, _ = extend(memory, *(x[row] for x in query), (lengths + n)[row, None], rule)
    np.testing.assert_allclose(after[row], alone, atol=1e-5)


@pytest.mark.parametrize('kind', ['layered', 'pooled', pytest.param('packed', marks=pytest.mark.slow)])
def test_reordered_rows_go_on_as_the_rows_they_were(kind):
  lm, tokens_BT = tiny_model(MODEL), tokens(1, 3, 30)
  lengths, lazy_L = np.full(3, 30, np.int32), (True, False, True)
  cache = read(lm.params, tokens_BT, config=MODEL)
  made = {
    'layered': lambda: cut(cache, lazy_L, lengths, 2, 8, 20),
    'pooled': lambda: in_pools(cache, [lazy_L] * 3, lengths),
    'packed': lambda: in_pools(cache, [lazy_L] * 3, lengths, quant=KiviConfig(4, group=8, residual=8)),
  }[kind]()
  new_BT, index = tokens(2, 3, 9), np.array([2, 0, 0])
  reordered = jax.jit(lambda cache, index: cache.reordered(index))
  expected = forced(lm.params, made, lengths, new_BT, config=MODEL)
  actual = forced(lm.params, reordered(made, index), lengths, new_BT[index], config=MODEL)
  np.testing.assert_allclose(actual, expected[index], atol=1e-5)
  assert abs(expected[index] - expected).max() > 1e-3


@pytest.mark.parametrize('ring', [False, True])
def test_tokens_taken_back_leave_no_trace(ring):
  """As a verifier rejects drafts: going on from an earlier position. A ring needs a spare slot for each."""
  lm, (tokens_BT, lengths) = tiny_model(MODEL), padded()
  cache = read(lm.params, tokens_BT, config=MODEL)
  drafts, kept = tokens(3, 3, 4), tokens(4, 3, 12)

  def after_drafts(spare):
    window = lambda k, v: window_of(k, v, lengths, initial=2, recent=8, room=None if ring else 24, spare=spare)
    fresh = LayeredCache(tuple(map(window, cache.keys, cache.values)))
    positions = lengths[:, None] + np.arange(4, dtype=np.int32)
    _, drafted = apply(MODEL, lm.params, drafts, positions, fresh)
    return [forced(lm.params, c, lengths, kept, config=MODEL) for c in (fresh, drafted)]

  expected, actual = after_drafts(4 if ring else 0)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  masked = Masked(cache, jnp.ones(3, bool), lengths, 2, 8, ring)
  np.testing.assert_allclose(expected, forced(lm.params, masked, lengths, kept, config=MODEL), atol=1e-5)
  if ring:  # Without spare slots drafts overwrite what is still seen.
    expected, actual = after_drafts(0)
    assert abs(actual - expected).max() > 1e-3


def test_heavy_tokens_are_those_with_the_most_votes_of_each_head():
  keys = np.broadcast_to(np.arange(40.0)[:, None], (2, 2, 40, 8))
  votes = np.zeros((2, 2, 40), np.float32)
  votes[0, 0, 7], votes[0, 0, 20], votes[0, 1, 11], votes[0, 1, 39] = 3.0, 2.0, 1.0, 9.0
  lengths = np.array([38, 5])
  memory = heavy_of(keys, keys, lengths, votes, total=8, recent=5, pool=3, room=2)
  assert memory.keys.shape == (2, 2, 10, 8)
  held = [[[p for p in head if p != EMPTY] for head in row] for row in memory.positions.tolist()]
  assert held[0][0] == [6, 7, 8, 33, 34, 35, 36, 37] and held[0][1] == [10, 11, 12, 33, 34, 35, 36, 37]
  assert held[1] == [[0, 1, 2, 3, 4]] * 2 and memory.evicted.tolist() == [30, 0]
  there = np.asarray(memory.positions) != EMPTY
  np.testing.assert_array_equal(np.asarray(memory.keys)[..., 3][there], np.asarray(memory.positions)[there])


@pytest.mark.slow
def test_heads_that_forget_differently_equal_a_mask_of_each():
  """Positions per head, also where distances are added to the logits."""
  config = MODEL.replace(position='alibi')
  lm, (tokens_BT, lengths) = tiny_model(config), padded()
  cache = read(lm.params, tokens_BT, config=config)
  votes = np.random.default_rng(0).random((3, 2, 64), np.float32)
  heavy = lambda k, v: heavy_of(k, v, lengths, votes, total=12, recent=4, pool=1, room=20)
  memory = heavy(cache.keys[0], cache.values[0])
  q, k, v = (normal(i, 3, 1, heads, 8) for i, heads in ((1, 4), (2, 2), (3, 2)))
  rule = layer_rule(config, 0)
  out, memory = extend(memory, q, k, v, lengths[:, None], rule)
  for head in range(2):
    kept = np.zeros((3, 1, 64), bool)
    for row in range(3):
      kept[row, 0, [p for p in np.asarray(memory.positions[row, head]) if p != EMPTY]] = True
    keys, values = (
      write_rows(x, new.transpose(0, 2, 1, 3), lengths) for x, new in ((cache.keys[0], k), (cache.values[0], v))
    )
    expected = attend(q, keys, values, lengths[:, None], np.arange(64)[None], rule, kept)
    np.testing.assert_allclose(out[:, :, 2 * head : 2 * head + 2], expected[:, :, 2 * head : 2 * head + 2], atol=1e-5)
