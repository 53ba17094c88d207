"""Every decoder on a small Gemma 3: layers with windows shorter than the prompts, two bases of RoPE, one key head."""

import functools

import numpy as np
import pytest

import decoders
from decoders import speculative
from decoders.simlayerkv import KiviConfig, LazyConfig
from decoders.swift import SwiftConfig
from decoders.swift.sets import SkipSet
from jaxlm.config import RopeConfig
from tests.decoders.test_plain import by_full_forward
from tests.models import TINY, tiny_model

GEMMA = TINY.replace(
  num_layers=5, num_kv_heads=1, norm_placement='sandwich', norm_plus_one=True, norm_eps=1e-6, activation='gelu_tanh',
  qk_norm=True, query_scale_dim=6, scaled_embeddings=True, tied_embeddings=True, windows=(4, 4, 0),
  rope=RopeConfig(theta=1e6, scaling='linear', factor=8.0), local_rope_theta=100.0, logit_softcap=30.0,
)  # fmt: skip
PROMPTS = [[1, 2, 3], [*range(4, 16)], [5, 6, 7, 8, 9, 10, 5, 6, 7]]
GREEDY = dict(max_new_tokens=12)
SAMPLED = dict(GREEDY, sampling=decoders.Sampling(temperature=1.5), seed=3)


@functools.cache
def plain(sampled=False):
  return decoders.generate(tiny_model(GEMMA), PROMPTS, **(SAMPLED if sampled else GREEDY))


def test_plain_decoding_is_the_full_forward_pass():
  lm = tiny_model(GEMMA)
  assert plain().rows() == [by_full_forward(lm, p, 12) for p in PROMPTS]
  assert (plain().tokens != plain(sampled=True).tokens).any()
  # The windows and the second base take part: without them other tokens come out.
  for changes in ({'windows': (), 'local_rope_theta': None}, {'local_rope_theta': 1e6}):
    other = type(lm)(GEMMA.replace(**changes), lm.params)
    assert plain().rows() != [by_full_forward(other, p, 12) for p in PROMPTS]


DRAFTERS = {
  'prompt lookup': lambda: speculative.PromptLookup(4),
  'draft model': lambda: speculative.DraftModel.of(
    tiny_model(GEMMA.replace(num_layers=2, windows=(3, 0))), threshold=0.0
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', DRAFTERS)
def test_what_a_drafter_proposes_changes_no_token(name):
  out = speculative.generate(tiny_model(GEMMA), PROMPTS, drafter=DRAFTERS[name](), **SAMPLED)
  np.testing.assert_array_equal(out.tokens, plain(sampled=True).tokens)
  assert out.stats['drafted'] > 0


@pytest.mark.slow
def test_swift_changes_no_token():
  skip = SwiftConfig(
    max_draft=4, context_window=8, threshold=0.05, guard=False, search=False, skip=SkipSet((1, 2), (2, 3))
  )
  out = decoders.swift.generate(tiny_model(GEMMA), PROMPTS, swift=skip, **SAMPLED)
  np.testing.assert_array_equal(out.tokens, plain(sampled=True).tokens)
  assert out.stats['drafted'] > 0


NOTHING_FORGOTTEN = LazyConfig(n_initial=2, n_recent=50, n_full=0)


@pytest.mark.slow
@pytest.mark.parametrize(
  'lazy',
  [
    NOTHING_FORGOTTEN,
    NOTHING_FORGOTTEN.replace(stage='prefill', prefill='layerwise', layout='static', batch='all'),
    NOTHING_FORGOTTEN.replace(quant=KiviConfig(bits=4, group=8, residual=32)),
  ],
  ids=('whole', 'layerwise', '4 bits'),
)
def test_a_cache_that_forgets_nothing_changes_no_token(lazy):
  out = decoders.simlayerkv.generate(tiny_model(GEMMA), PROMPTS, lazy=lazy, **GREEDY)
  np.testing.assert_array_equal(out.tokens, plain().tokens)


def test_only_layers_without_a_window_are_cut():
  out = decoders.simlayerkv.generate(tiny_model(GEMMA), PROMPTS, lazy=NOTHING_FORGOTTEN.replace(n_recent=4), **GREEDY)
  assert out.stats['lazy_layers'] == [[], [2], [2]]
  np.testing.assert_array_equal(out.tokens[:, :2], plain().tokens[:, :2])
  assert (out.tokens != plain().tokens).any()
