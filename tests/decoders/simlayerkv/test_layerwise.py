"""Prompts read in chunks, or layer by layer, against prompts read at once."""

import numpy as np
import pytest

import decoders
from decoders.programs import Clock
from decoders.simlayerkv import KiviConfig, LazyConfig, compress, generate, layerwise
from tests.lazy_models import MODEL, PROMPTS
from tests.models import TINY, living_cache_bytes, tiny_model

SMALL = LazyConfig(n_initial=2, n_recent=8, stage='prefill')
DEEP = MODEL.replace(num_layers=6, windows=(0, 0, 30))


@pytest.mark.parametrize('chunk', [7, 16, 64])
def test_prompts_in_chunks_are_decoded_as_read_at_once(chunk):
  lm = tiny_model(MODEL)
  whole = decoders.generate(lm, PROMPTS, max_new_tokens=6)
  chunked = decoders.generate(lm, PROMPTS, max_new_tokens=6, prefill_chunk=chunk)
  np.testing.assert_array_equal(chunked.tokens, whole.tokens)


def test_chunks_find_the_same_lazy_layers():
  lm, lazy = tiny_model(MODEL), SMALL.replace(n_full=1, n_last=9)
  whole, chunked = (generate(lm, PROMPTS, max_new_tokens=6, lazy=lazy, prefill_chunk=n) for n in (None, 7))
  np.testing.assert_array_equal(chunked.tokens, whole.tokens)
  np.testing.assert_allclose(chunked.stats['lazy_ratios'], whole.stats['lazy_ratios'], atol=2e-4)


@pytest.mark.parametrize(
  'rule',
  [
    {'n_full': 2},
    {'threshold': 0.3},
    pytest.param({'n_full': 3, 'keep': 'snapkv', 'n_observed': 4}, marks=pytest.mark.slow),
    pytest.param({'n_full': 0}, marks=pytest.mark.slow),
    pytest.param({'n_full': 6}, marks=pytest.mark.slow),
  ],
)
def test_layer_by_layer_is_the_whole_prefill(rule):
  lm, lazy = tiny_model(DEEP), SMALL.replace(layout='static', **rule)
  whole = generate(lm, PROMPTS[:1], max_new_tokens=6, lazy=lazy)
  deep = generate(lm, PROMPTS[:1], max_new_tokens=6, lazy=lazy.replace(prefill='layerwise'))
  np.testing.assert_array_equal(deep.tokens, whole.tokens)
  for name in ('lazy_layers', 'kv_bytes_full'):
    assert deep.stats[name] == whole.stats[name]
  np.testing.assert_allclose(deep.stats['lazy_ratios'], whole.stats['lazy_ratios'], atol=2e-4)


@pytest.mark.slow
def test_layer_by_layer_of_rows_that_agree():
  lm, lazy = tiny_model(DEEP), SMALL.replace(layout='static', batch='all', n_full=2, quant=KiviConfig(8, 8, 8))
  whole = generate(lm, PROMPTS, max_new_tokens=6, lazy=lazy)
  deep = generate(lm, PROMPTS, max_new_tokens=6, lazy=lazy.replace(prefill='layerwise'), num_samples=1)
  np.testing.assert_array_equal(deep.tokens, whole.tokens)
  assert deep.stats['lazy_layers'] == whole.stats['lazy_layers']
  with pytest.raises(ValueError, match='layerwise.*reads 3 rows at once'):
    generate(lm, PROMPTS, max_new_tokens=4, lazy=SMALL.replace(layout='static', prefill='layerwise'))


@pytest.mark.slow
def test_layer_by_layer_never_holds_more_than_is_kept_and_one_layer(monkeypatch):
  config = TINY.replace(num_layers=8, max_length=512)
  lm = tiny_model(config)
  prompt = [np.random.default_rng(0).integers(0, 50, 480).tolist()]
  lazy = SMALL.replace(layout='static', n_full=2, prefill='layerwise')
  live, run, before = [], Clock.run, living_cache_bytes()

  def looking(clock, part, function, *args, **static):
    if function is layerwise.one_layer:
      live.append(living_cache_bytes() - before)
    return run(clock, part, function, *args, **static)

  monkeypatch.setattr(Clock, 'run', looking)
  context = compress(lm, prompt, lazy=lazy, room=16)
  layer = 2 * 2 * 512 * 8 * 4
  assert len(live) == 8
  # Before each layer at most two whole ones, and the cut ones.
  assert max(live) <= context.nbytes + 0.05 * layer
  assert context.stats['kv_bytes_full'] == 8 * layer


def test_a_chunk_without_sense_is_refused():
  with pytest.raises(ValueError, match='prefill_chunk=0 must be at least 1'):
    decoders.generate(tiny_model(MODEL), PROMPTS, prefill_chunk=0)
  with pytest.raises(ValueError, match='cuts a prefix of 6 tokens'):
    decoders.generate(tiny_model(MODEL.replace(prefix=6)), PROMPTS[:2], max_new_tokens=4, prefill_chunk=4)
