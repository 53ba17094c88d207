"""Which layers are lazy, and how many bytes that leaves."""

import numpy as np
import pytest

from decoders.simlayerkv import KiviConfig, LazyConfig
from decoders.simlayerkv.config import cache_bytes, compression_ratio, full_layers_within, preset, select_lazy
from tests.models import TINY

MODEL = TINY.replace(num_layers=3)
SMALL = LazyConfig(n_initial=2, n_recent=8)


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
  assert preset('streaming').n_full == preset('snapkv').n_full == preset('h2o').n_full == 0
  assert preset('kivi').quant == KiviConfig() and preset('kivi').threshold == 1
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
    ({'keep': 'snapkv'}, "it needs stage='prefill'"),
    ({'keep': 'snapkv', 'stage': 'prefill', 'n_observed': 1024}, 'must be less than the 1024 tokens kept'),
    ({'prefill': 'layerwise', 'stage': 'prefill'}, "needs stage='prefill' and layout='static'"),
  ],
)
def test_settings_without_sense_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    LazyConfig(**bad)
