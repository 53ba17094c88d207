"""Decoders in a program that computes in float64 elsewhere (jax_enable_x64): the same tokens, also where they are sampled."""

import functools

import numpy as np
import pytest

import decoders
from decoders import speculative
from decoders.simlayerkv import KiviConfig, LazyConfig
from decoders.swift import SwiftConfig
from decoders.swift.sets import SkipSet
from tests.decoders.translation import models_made
from tests.models import TINY, float64, tiny_model

PROMPTS = [[1, 2, 3], [*range(4, 16)], [5, 6, 7, 8, 9, 10, 5, 6, 7]]
SAMPLED = dict(max_new_tokens=12, sampling=decoders.Sampling(temperature=1.5, top_k=20), seed=3)
NOTHING_FORGOTTEN = LazyConfig(n_initial=2, n_recent=50, n_full=0)


@functools.cache
def models():
  """A target and its draft, made before float64 is allowed."""
  return tiny_model(TINY.replace(num_layers=4)), tiny_model(TINY.replace(num_layers=1), 1)


def plain():
  return decoders.generate(models()[0], PROMPTS, **SAMPLED)


def lookup():
  return speculative.generate(models()[0], PROMPTS, drafter=speculative.PromptLookup(4), **SAMPLED)


def draft_model(**rule):
  return speculative.generate(
    models()[0], PROMPTS, drafter=speculative.DraftModel.of(models()[1], threshold=0.0), **rule, **SAMPLED
  )


def draft_model_by_residuals():
  return draft_model(rule='residual')


def swift():
  skip = SwiftConfig(max_draft=4, context_window=8, threshold=0.05, guard=False, search=False, skip=SkipSet((1,), (1,)))
  return decoders.swift.generate(models()[0], PROMPTS, swift=skip, **SAMPLED)


def lazy(**changes):
  return decoders.simlayerkv.generate(models()[0], PROMPTS, lazy=NOTHING_FORGOTTEN.replace(**changes), **SAMPLED)


def ring():
  return lazy(n_recent=4)


def packed():
  return lazy(quant=KiviConfig(bits=4, group=8, residual=8))


def beams():
  return decoders.translate(models_made.tiny(models_made.TINY), models_made.SOURCES, beam_size=3)


def recombined_beams():
  return decoders.translate(models_made.tiny(models_made.MARKOV), models_made.SOURCES, beam_size=3, recombine=True)


@pytest.mark.parametrize(
  'decode',
  [plain, *(pytest.param(f, marks=pytest.mark.slow) for f in (lookup, draft_model, draft_model_by_residuals, swift, lazy, ring, packed, beams, recombined_beams))],
)  # fmt: skip
def test_tokens_are_the_same_with_float64(decode):
  models()
  expected = decode()
  with float64(True):
    found = decode()
  np.testing.assert_array_equal(found.tokens, expected.tokens)
