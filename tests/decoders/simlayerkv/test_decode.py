"""Decoding with cut caches, against plain decoding where nothing is lost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.simlayerkv import KiviConfig, LazyConfig
from decoders.simlayerkv.config import cache_bytes, select_lazy
from jaxlm.errors import NotFiniteError
from jaxlm.language_model import LanguageModel
from tests.lazy_models import MODEL, PROMPTS
from tests.models import TINY, living_cache_bytes, tiny_model

SMALL = LazyConfig(n_initial=2, n_recent=8)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_equal_rows_decide_as_one_row_whatever_the_policy():
  lm = tiny_model(MODEL)
  for batch in ('all', 'mean', 'group'):
    lazy = SMALL.replace(n_full=1, batch=batch)
    two = decoders.simlayerkv.generate(lm, [PROMPTS[0]] * 2, max_new_tokens=12, lazy=lazy)
    one = decoders.simlayerkv.generate(lm, PROMPTS[:1], max_new_tokens=12, lazy=lazy)
    assert two.rows() == one.rows() * 2 and two.stats['lazy_layers'] == one.stats['lazy_layers'] * 2


def test_the_full_cache_is_gone_once_layers_are_cut():
  lm = tiny_model(MODEL)
  live, before = [], living_cache_bytes()

  def look(row, new):
    live.append(living_cache_bytes() - before)

  out = decoders.simlayerkv.generate(lm, PROMPTS[:1], max_new_tokens=16, lazy=SMALL.replace(n_full=1), stream=look)
  assert out.stats['kv_bytes'] < out.stats['kv_bytes_full']
  assert min(live[2:]) <= out.stats['kv_bytes'] * 1.05


@pytest.mark.slow
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


@pytest.mark.parametrize('n_full', [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_residual_longer_than_all_tokens_is_no_quantisation(n_full):
  exact = lazily(n_full=n_full)
  out = lazily(n_full=n_full, quant=KiviConfig(2, group=8, residual=64))
  np.testing.assert_array_equal(out.tokens, exact.tokens)


@pytest.mark.slow
def test_quantised_caches_are_smaller_and_more_bits_are_truer():
  model = TINY.replace(num_layers=3, max_length=512)
  prompts = [np.random.default_rng(5).integers(0, 50, 400).tolist(), [1, 2, 3]]
  run = lambda **kw: decoders.simlayerkv.generate(
    tiny_model(model), prompts, max_new_tokens=12, lazy=SMALL.replace(n_full=1, **kw)
  )
  outs = [run(), *(run(quant=KiviConfig(bits, group=8, residual=8)) for bits in (8, 2))]
  sizes = [out.stats['kv_bytes'] for out in outs]
  assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0] / 2.5
  for out in outs:
    np.testing.assert_array_equal(out.tokens[:, :2], outs[0].tokens[:, :2])
  assert (outs[1].tokens == outs[0].tokens).mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize('keep', ['h2o', pytest.param('snapkv', marks=pytest.mark.slow)])
def test_heavy_tokens_that_are_all_tokens_lose_nothing(keep):
  lazy = LazyConfig(n_initial=0, n_recent=50, n_full=0, stage='prefill', keep=keep, n_observed=4)
  out = decoders.simlayerkv.generate(tiny_model(MODEL), PROMPTS, max_new_tokens=12, lazy=lazy)
  np.testing.assert_array_equal(out.tokens, plain().tokens[:, :12])
  few = decoders.simlayerkv.generate(
    tiny_model(MODEL), PROMPTS, max_new_tokens=12, lazy=lazy.replace(n_recent=8, quant=KiviConfig(8, 8, 8))
  )
  assert few.stats['lazy_layers'] == [[0, 1, 2], [0, 1, 2], []]
  np.testing.assert_array_equal(few.tokens[:, 0], plain().tokens[:, 0])
  assert (few.tokens != out.tokens).any()


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['prefill', 'decode'])
def test_both_layouts_decode_the_same(stage):
  outs = [lazily(n_full=1, stage=stage, layout=layout) for layout in ('pooled', 'static')]
  np.testing.assert_array_equal(outs[0].tokens, outs[1].tokens)
  assert outs[0].stats['lazy_layers'] == outs[1].stats['lazy_layers']


@pytest.mark.parametrize('stage', ['prefill', 'decode'])
def test_scores_are_the_ratios_that_layers_are_chosen_by(stage):
  lm, lazy = tiny_model(MODEL), SMALL.replace(stage=stage)
  ratios = decoders.simlayerkv.lazy_scores(lm, PROMPTS[:2], lazy)
  out = decoders.simlayerkv.generate(lm, PROMPTS[:2], max_new_tokens=4, eos_id=None, lazy=lazy.replace(threshold=1.0))
  assert ratios.all()
  np.testing.assert_allclose(ratios, out.stats['lazy_ratios'], atol=1e-4)


def test_a_calibrated_threshold_is_the_highest_that_compresses_enough():
  lm, lazy = tiny_model(MODEL), SMALL.replace(stage='prefill')
  texts = PROMPTS[:2]
  ratios = decoders.simlayerkv.lazy_scores(lm, texts, lazy)
  assert ratios.shape == (2, 3)

  def compression(threshold):
    cut = (ratios > np.float32(threshold)).sum(axis=1)
    full = sum(cache_bytes(MODEL, len(t), 0, 10) for t in texts)
    return full / sum(cache_bytes(MODEL, len(t), int(z), 10) for t, z in zip(texts, cut))

  for target in (1.2, 1.7):
    threshold = decoders.simlayerkv.calibrate_threshold(lm, texts, target, lazy)
    assert compression(threshold) >= target
    assert compression(np.nextafter(np.float32(threshold), np.float32(1))) < target
    out = decoders.simlayerkv.generate(lm, texts, max_new_tokens=2, lazy=lazy.replace(threshold=threshold))
    assert sum(map(len, out.stats['lazy_layers'])) == (ratios > np.float32(threshold)).sum()
  with pytest.raises(ValueError, match='target_ratio=99 is out of reach: with all layers lazy'):
    decoders.simlayerkv.calibrate_threshold(lm, texts, 99, lazy)


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
  with pytest.raises(NotFiniteError, match='Row 0: the logits after position 39 are not finite'):
    decoders.simlayerkv.generate(LanguageModel(MODEL, broken), PROMPTS, max_new_tokens=3, lazy=SMALL)
  with pytest.raises(ValueError, match='row 0, layer 0 is nan: activations are not finite'):
    select_lazy(np.full((1, 3), np.nan), [40], SMALL, MODEL)
