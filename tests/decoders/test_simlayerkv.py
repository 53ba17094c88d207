"""SimLayerKV against a full cache whose evicted keys are hidden by a mask, and against plain decoding where nothing is lost."""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.lazy import cache_bytes, compression_ratio, full_layers_within, preset, select_lazy
from decoders.simlayerkv import KiviConfig, LazyConfig
from jaxlm.caches import FullCache, LayeredCache
from jaxlm.caches.full import Sequence
from jaxlm.caches.rows import heads_first, write_rows
from jaxlm.caches.scored import Scored, lazy_ratio
from jaxlm.caches.slots import EMPTY, everything_of, window_of
from jaxlm.language_model import LanguageModel
from jaxlm.models.attention import attend, attention_weights, layer_rule
from jaxlm.models.transformer import Transformer
from tests.models import TINY, tiny_model

MODEL = TINY.replace(num_layers=3)
LENGTHS = (40, 23, 5)
PROMPTS = [np.random.default_rng(i).integers(0, 50, n).tolist() for i, n in enumerate(LENGTHS)]
SMALL = LazyConfig(n_initial=2, n_recent=8)


@struct.dataclass
class Masked:
  """A full cache that hides what lazy layers would have forgotten: the specification of `LayeredCache`."""

  cache: FullCache
  lazy: jax.Array  # [L] bool
  lengths: jax.Array  # [B], when the layers were cut
  initial: int = struct.field(pytree_node=False)
  recent: int = struct.field(pytree_node=False)
  ring: bool = struct.field(pytree_node=False)

  @property
  def fresh(self):
    return False

  def attend(self, layer, q, k, v, positions, rule):
    old = self.cache
    keys, values = (
      write_rows(x[layer], heads_first(new), positions[:, 0]) for x, new in ((old.keys, k), (old.values, v))
    )
    slot_1S = jnp.arange(keys.shape[2])[None]
    if self.ring:
      kept_BTS = slot_1S[:, None] > positions[:, :, None] - self.recent
    else:
      kept_BTS = jnp.broadcast_to(
        (slot_1S >= self.lengths[:, None] - self.recent)[:, None], (*positions.shape, keys.shape[2])
      )
    mask_BTS = kept_BTS | (slot_1S < self.initial)[:, None] | ~self.lazy[layer]
    out = attend(q, keys, values, positions, slot_1S, rule, mask_BTS)
    put = lambda layers, new: layers[:layer] + (new,) + layers[layer + 1 :]
    return out, self.replace(cache=FullCache(put(old.keys, keys), put(old.values, values), old.empty))


@functools.partial(jax.jit, static_argnames='config')
def read(params, tokens_BT, *, config):
  cache = FullCache.create(config, tokens_BT.shape[0], 64)
  return Transformer(config).apply({'params': params}, tokens_BT, cache=cache)[1]


@functools.partial(jax.jit, static_argnames='config')
def forced(params, cache, lengths_B, tokens_BT, *, config):
  """Returns logits [B, T, V] of tokens read one by one."""

  def step(carry, token_B):
    cache, position_B = carry
    logits, cache = Transformer(config).apply({'params': params}, token_B[:, None], position_B[:, None], cache)
    return (cache, position_B + 1), logits[:, 0]

  return jax.lax.scan(step, (cache, lengths_B), tokens_BT.T)[1].transpose(1, 0, 2)


def padded(prompts=PROMPTS, width=40):
  return jnp.asarray([p + [0] * (width - len(p)) for p in prompts]), jnp.asarray([len(p) for p in prompts])


def cut(cache, lazy_L, lengths, initial, recent, room):
  cut_one = functools.partial(window_of, lengths=lengths, initial=initial, recent=recent, room=room)
  pairs = zip(cache.keys, cache.values, lazy_L)
  return LayeredCache(tuple(cut_one(k, v) if lazy else everything_of(k, v, lengths) for k, v, lazy in pairs))


@pytest.mark.parametrize('ring', [False, True])
@pytest.mark.parametrize(
  'variant',
  [
    {'num_kv_heads': 4},
    {},
    {'num_kv_heads': 1, 'position': 'alibi'},
    {'attention': 'sigmoid', 'position': 'learned'},
  ],
)
def test_cut_layers_equal_a_full_cache_with_a_mask(variant, ring):
  config = MODEL.replace(**variant)
  lm, (tokens_BT, lengths) = tiny_model(config), padded()
  new_BT = jnp.asarray(np.random.default_rng(9).integers(0, 50, (3, 20)))
  cache = read(lm.params, tokens_BT, config=config)
  for lazy_L in ((True, False, True), (False, True, False), (True, True, True)):
    masked = Masked(cache, jnp.asarray(lazy_L), lengths, 2, 8, ring)
    expected = forced(lm.params, masked, lengths, new_BT, config=config)
    lazy = cut(cache, lazy_L, lengths, 2, 8, None if ring else 20)
    actual = forced(lm.params, lazy, lengths, new_BT, config=config)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
    one_off = forced(lm.params, masked.replace(recent=7), lengths, new_BT, config=config)
    assert abs(one_off[0] - expected[0]).max() > 1e-4  # The mask is not void.


@pytest.mark.parametrize('ring', [False, True])
@pytest.mark.parametrize('T', [3, 14])
def test_many_tokens_at_once_equal_one_by_one(ring, T):
  lm, (tokens_BT, lengths) = tiny_model(MODEL), padded()
  new_BT = jnp.asarray(np.random.default_rng(8).integers(0, 50, (3, 20)))
  cache = cut(read(lm.params, tokens_BT, config=MODEL), (True, False, True), lengths, 2, 8, None if ring else 20)
  expected = forced(lm.params, cache, lengths, new_BT, config=MODEL)
  positions = lengths[:, None] + jnp.arange(T)[None]
  logits, cache = Transformer(MODEL).apply({'params': lm.params}, new_BT[:, :T], positions, cache)
  rest = forced(lm.params, cache, lengths + T, new_BT[:, T:], config=MODEL)
  np.testing.assert_allclose(jnp.concatenate([logits, rest], axis=1), expected, atol=1e-5)


def held(window):
  return [sorted(int(p) for p in row if p != EMPTY) for row in window.positions]


@pytest.mark.parametrize('room', [None, 3])
def test_a_window_holds_the_first_and_the_latest_tokens_once(room):
  keys = jnp.broadcast_to(jnp.arange(40.0)[None, None, :, None], (4, 2, 40, 8))
  lengths = (40, 11, 10, 1)
  window = window_of(keys, keys, jnp.asarray(lengths), initial=2, recent=8, room=room)
  assert window.keys.shape[2] == 10 + (room or 0)
  assert held(window) == [[0, 1, *range(max(2, n - 8), n)] if n > 1 else [0] for n in lengths]
  there = np.asarray(window.positions) != EMPTY
  np.testing.assert_array_equal(np.asarray(window.keys[:, 1, :, 3])[there], np.asarray(window.positions)[there])


def brute_force_ratio(lm, tokens, initial, recent, queries, include_self):
  """From the [T, T] maps of one row."""
  maps = []

  class Maps(Sequence):
    def attend(self, layer, q, k, v, positions, rule):
      at = jnp.arange(q.shape[1])[None]
      weights, slot = attention_weights(q, heads_first(k), at, at, rule)
      maps.append((np.asarray(weights), None if slot is None else np.asarray(slot)))
      return super().attend(layer, q, k, v, positions, rule)

  Transformer(lm.config).apply({'params': lm.params}, jnp.asarray([tokens]), cache=Maps())
  ratios = []
  for weights, slot in maps:
    T, shares = weights.shape[-1], []
    for i in range(max(0, T - queries), T):
      first = 0 if include_self else 1
      kept = [j for j in range(i + 1) if j < initial or first <= i - j < recent + first]
      extra = 0 if slot is None else slot[0, :, :, i]
      row = weights[0, :, :, i]
      shares.append(np.mean((row[..., kept].sum(-1) + extra) / (row.sum(-1) + extra)))
    ratios.append(np.mean(shares))
  return ratios


@pytest.mark.parametrize('queries, include_self', [(1, True), (4, False), (32, False)])
@pytest.mark.parametrize('variant', [{}, {'attention': 'sigmoid'}, {'sink': dataclasses.replace(TINY.sink, kind='kv')}])
def test_prompt_scores_equal_whole_maps(variant, queries, include_self):
  config = MODEL.replace(**variant)
  lm, (tokens_BT, lengths) = tiny_model(config), padded()
  cache = Scored(FullCache.create(config, 3, 64), lengths, jnp.zeros((3, 3)), 2, 6, queries, include_self)
  scored = jax.jit(lambda p, t, c: Transformer(config).apply({'params': p}, t, cache=c)[1])(lm.params, tokens_BT, cache)
  expected = [brute_force_ratio(lm, p, 2, 6, queries, include_self) for p in PROMPTS]
  np.testing.assert_allclose(scored.ratios, expected, atol=1e-6)


def test_a_new_tokens_score_equals_the_longer_prompts():
  lm, (tokens_BT, lengths) = tiny_model(MODEL), padded()
  cache = Scored(read(lm.params, tokens_BT, config=MODEL), lengths + 1, jnp.zeros((3, 3)), 2, 6)
  _, scored = Transformer(MODEL).apply({'params': lm.params}, jnp.asarray([[7], [8], [9]]), lengths[:, None], cache)
  expected = [brute_force_ratio(lm, [*p, t], 2, 6, 1, True) for p, t in zip(PROMPTS, (7, 8, 9))]
  np.testing.assert_allclose(scored.ratios, expected, atol=1e-6)


def test_planted_layers_are_told_apart():
  T, rule = 60, layer_rule(MODEL, 0)
  q = jnp.zeros((1, 1, 4, 8)).at[..., 0].set(100.0)
  keys = jnp.zeros((1, 2, T, 8))
  score = lambda k: float(lazy_ratio(q, k, jnp.asarray([[T - 1]]), jnp.arange(T)[None], rule, initial=2, recent=8)[0])
  assert score(keys.at[:, :, 0, 0].set(1.0)) > 0.99
  assert score(keys.at[:, :, 30, 0].set(1.0)) < 0.01
  np.testing.assert_allclose(score(keys), 10 / T, atol=1e-6)  # Short prompts make uniform layers look lazy.


def test_fewer_layers_are_lazy_as_the_threshold_rises():
  ratios, lengths = np.random.default_rng(0).random((4, 3)), np.full(4, 40)
  counts = [select_lazy(ratios, lengths, SMALL.replace(threshold=t), MODEL).sum() for t in np.linspace(0, 1, 21)]
  assert counts == sorted(counts, reverse=True) and counts[0] == 12 and counts[-1] == 0


def test_rows_agree_as_they_are_told():
  ratios, lengths = np.array([[0.9, 0.2, 0.8], [0.5, 0.4, 0.95]]), np.array([40, 30])
  lazy = lambda **kw: select_lazy(ratios, lengths, SMALL.replace(**kw), MODEL).tolist()
  assert lazy(threshold=0.6) == [[True, False, True], [False, False, True]]
  assert lazy(threshold=0.6, batch='all') == [[False, False, True]] * 2
  assert lazy(threshold=0.6, batch='mean') == [[True, False, True]] * 2
  assert lazy(n_full=1) == [[True, False, True]] * 2
  assert lazy(n_full=2, exempt_layers=(-1,)) == [[True, False, False], [True, False, False]]
  assert lazy() == [[True, False, False], [False, False, True]]  # half of three layers, rounded up, are full
  short = select_lazy(ratios, np.array([40, 10]), SMALL.replace(threshold=0.0), MODEL)
  assert short.tolist() == [[True] * 3, [False] * 3]
  windowed = MODEL.replace(windows=(0, 5, 0))
  assert select_lazy(ratios, lengths, SMALL.replace(threshold=0.0), windowed).tolist() == [[True, False, True]] * 2


def test_budget_keeps_as_many_layers_as_fit():
  for budget in range(cache_bytes(MODEL, 40, 3, 10), cache_bytes(MODEL, 40, 0, 10) + 999, 1000):
    n = full_layers_within(budget, MODEL, 40, 10)
    assert cache_bytes(MODEL, 40, 3 - n, 10) <= budget
    assert n == 3 or cache_bytes(MODEL, 40, 3 - n - 1, 10) > budget
  with pytest.raises(ValueError, match='3 lazy layers of 10 tokens'):
    full_layers_within(100, MODEL, 40, 10)


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


@functools.cache
def plain():
  return decoders.generate(tiny_model(MODEL), PROMPTS, max_new_tokens=16)


def lazily(**changes):
  return decoders.simlayerkv.generate(tiny_model(MODEL), PROMPTS, max_new_tokens=16, lazy=SMALL.replace(**changes))


@pytest.mark.parametrize('stage', ['decode', 'prefill'])
def test_nothing_lazy_is_plain_decoding(stage):
  out = lazily(threshold=1.0, stage=stage)
  np.testing.assert_array_equal(out.tokens, plain().tokens)
  assert out.stats['lazy_layers'] == [[], [], []] and out.stats['compression'] == 1
  assert out.stats['kv_bytes'] == plain().stats['kv_bytes']


def test_a_window_longer_than_the_prompt_is_the_identity():
  out = lazily(n_full=0, n_recent=50)
  np.testing.assert_array_equal(out.tokens, plain().tokens)
  assert out.stats['lazy_layers'] == [[], [], []]


@pytest.mark.parametrize('stage, same', [('decode', 2), ('prefill', 1)])
@pytest.mark.parametrize('growth', ['append', 'ring'])
def test_the_first_tokens_are_those_of_the_full_cache(stage, same, growth):
  outs = [lazily(n_full=0, stage=stage, growth=growth, n_recent=n) for n in (1, 2, 8)]
  for out in outs:
    np.testing.assert_array_equal(out.tokens[:, :same], plain().tokens[:, :same])
    assert out.stats['kv_bytes'] < out.stats['kv_bytes_full']
  assert any((out.tokens[:, same:] != plain().tokens[:, same:]).any() for out in outs)


def test_a_batch_in_groups_equals_each_row_alone():
  lm = tiny_model(MODEL)
  lazy = SMALL.replace(n_full=1)
  options = {'max_new_tokens': 12, 'lazy': lazy, 'sampling': decoders.Sampling(temperature=1.0), 'seed': 3}
  prompts = [*PROMPTS, PROMPTS[0]]
  seen: dict[int, list[int]] = {}
  out = decoders.simlayerkv.generate(
    lm, prompts, stream=lambda row, new: seen.setdefault(row, []).extend(new), num_samples=2, **options
  )
  assert out.rows() == [seen[row] for row in range(8)]
  again = decoders.simlayerkv.generate(lm, prompts, batch_size=1, num_samples=2, **options)
  np.testing.assert_array_equal(out.tokens, again.tokens)
  assert out.stats['lazy_layers'] == again.stats['lazy_layers']
  assert len(out.stats['lazy_layers']) == 8 and len(out.stats['lazy_layers'][0]) == 2


def test_equal_rows_decide_as_one_row_whatever_the_policy():
  lm = tiny_model(MODEL)
  for batch in ('all', 'mean', 'group'):
    lazy = SMALL.replace(n_full=1, batch=batch)
    two = decoders.simlayerkv.generate(lm, [PROMPTS[0]] * 2, max_new_tokens=12, lazy=lazy)
    one = decoders.simlayerkv.generate(lm, PROMPTS[:1], max_new_tokens=12, lazy=lazy)
    assert two.rows() == one.rows() * 2 and two.stats['lazy_layers'] == one.stats['lazy_layers'] * 2


def test_the_full_cache_is_gone_once_layers_are_cut():
  lm = tiny_model(MODEL)
  live = []

  def look(row, new):
    live.append(sum(x.nbytes for x in jax.live_arrays() if x.ndim == 4 and x.shape[1] == 2))

  out = decoders.simlayerkv.generate(lm, PROMPTS[:1], max_new_tokens=16, lazy=SMALL.replace(n_full=1), stream=look)
  assert out.stats['kv_bytes'] < out.stats['kv_bytes_full']
  assert min(live[2:]) <= out.stats['kv_bytes'] * 1.05


def test_a_sink_token_is_the_first_of_the_kept():
  config = MODEL.replace(sink=dataclasses.replace(TINY.sink, kind='token'))
  lm = tiny_model(config)
  full = decoders.generate(lm, PROMPTS, max_new_tokens=8)
  # 23 tokens, the sink token and the first new one: a window of exactly these, and the shorter rows lose nothing.
  fits = LazyConfig(n_initial=1, n_recent=24, n_full=0, batch='mean')
  out = decoders.simlayerkv.generate(lm, PROMPTS, max_new_tokens=8, lazy=fits)
  np.testing.assert_array_equal(full.tokens[1:], out.tokens[1:])
  assert out.stats['lazy_layers'] == [[0, 1, 2]] * 3
  cut_down = decoders.simlayerkv.generate(lm, PROMPTS, max_new_tokens=8, lazy=SMALL.replace(n_full=0))
  np.testing.assert_array_equal(full.tokens[:, :2], cut_down.tokens[:, :2])


@pytest.mark.parametrize('n_full', [3, 1])
def test_a_residual_longer_than_all_tokens_is_no_quantisation(n_full):
  exact = lazily(n_full=n_full)
  out = lazily(n_full=n_full, quant=KiviConfig(2, group=8, residual=64))
  np.testing.assert_array_equal(out.tokens, exact.tokens)


@pytest.mark.parametrize('n_full', [3, 1])
def test_quantised_caches_are_smaller_and_more_bits_are_truer(n_full):
  model = TINY.replace(num_layers=3, max_length=512)
  prompts = [np.random.default_rng(5).integers(0, 50, 400).tolist(), [1, 2, 3]]
  run = lambda **kw: decoders.simlayerkv.generate(
    tiny_model(model), prompts, max_new_tokens=12, lazy=SMALL.replace(n_full=n_full, **kw)
  )
  exact = run()
  outs = {bits: run(quant=KiviConfig(bits, group=8, residual=8)) for bits in (8, 4, 2)}
  sizes = [exact.stats['kv_bytes'], *(out.stats['kv_bytes'] for out in outs.values())]
  assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0] / 2.5
  for out in outs.values():
    np.testing.assert_array_equal(out.tokens[:, :2], exact.tokens[:, :2])
  assert (outs[8].tokens == exact.tokens).mean() > 0.8


def test_bytes_with_four_bits_are_the_papers():
  llama = MODEL.replace(num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128, dtype='bfloat16')
  assert compression_ratio(llama, 32000, 0, 1028, KiviConfig()) == pytest.approx(3.2, rel=0.01)
  assert compression_ratio(llama, 3500, 17, 1028, KiviConfig()) == pytest.approx(5.1, rel=0.03)


def test_presets_are_those_of_the_specification():
  authors = preset('authors-decode', 'llama-3-8b-instruct')
  assert (authors.n_initial, authors.n_recent, authors.n_last, authors.threshold) == (4, 1024, 1, 0.9)
  assert preset('authors-decode', 'qwen2.5-3b-instruct').exempt_layers == (-1,)
  early = preset('authors-prefill', n_full=4)
  assert (early.n_last, early.score_recent, early.n_recent, early.include_self) == (32, 512, 1024, False)
  assert preset('kvpress').kept == 1027 and preset('lighttransfer').kept == 1024
  with pytest.raises(ValueError, match="Did you mean 'kvpress'"):
    preset('kvpres')
  with pytest.raises(ValueError, match='llama-3-8b-instruct'):
    preset('authors-decode', 'llama-3-8b')


@pytest.mark.parametrize(
  'bad, message',
  [
    ({'n_recent': 0}, 'n_recent=0 must be at least 1'),
    ({'n_initial': -1}, 'n_initial=-1 must be at least 0'),
    ({'threshold': 1.5}, r'threshold=1.5 must be in \[0, 1\]'),
    ({'threshold': -0.1}, r'must be in \[0, 1\]'),
    ({'threshold': 0.5, 'n_full': 2}, 'threshold and n_full each decide'),
    ({'stage': 'prefil'}, "Did you mean 'prefill'"),
    ({'budget': 0}, 'positive number of bytes'),
    ({'quant': KiviConfig(), 'growth': 'ring'}, "needs growth='append'"),
  ],
)
def test_settings_without_sense_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    LazyConfig(**bad)


def test_what_does_not_fit_the_model_is_refused():
  with pytest.raises(ValueError, match='layer 7; the model has layers 0 to 2'):
    lazily(exempt_layers=(7,))
  with pytest.raises(ValueError, match='n_full=9 is more than the 3 layers'):
    lazily(n_full=9)
  with pytest.raises(ValueError, match='budget=100 bytes is less than'):
    lazily(budget=100)
  with pytest.raises(ValueError, match='does not divide the head size 8'):
    lazily(quant=KiviConfig())
  with pytest.raises(ValueError, match='negative weights'):
    decoders.simlayerkv.generate(tiny_model(MODEL.replace(attention='identity')), PROMPTS)
  lm = tiny_model(MODEL)
  broken = jax.tree.map(lambda x: x * jnp.nan, lm.params)
  with pytest.raises(ValueError, match='row 0, layer 0 is nan: activations are not finite'):
    decoders.simlayerkv.generate(LanguageModel(MODEL, broken), PROMPTS, max_new_tokens=3, lazy=SMALL)
