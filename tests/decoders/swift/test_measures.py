"""What a set is worth: shares of a text that are predicted, and bytes."""

import jax
import numpy as np
import pytest

from decoders.swift import SkipSet, draft_bytes, matchness
import jaxlm
from tests.models import TINY, tiny_model

MODEL = TINY.replace(num_layers=5, max_length=128)
IDS = np.random.default_rng(0).integers(0, MODEL.vocab_size, 21).tolist()


@pytest.mark.slow
def test_matchness_is_the_share_of_likeliest_tokens():
  lm = tiny_model(MODEL)
  prompt = [1, 2, 3]
  ids = (
    prompt + np.asarray(jaxlm.forward(lm, [IDS]))[0].argmax(-1).tolist()
  )  # Some of these are likeliest in this text too.
  hits = np.asarray(jaxlm.forward(lm, [ids[:-1]]))[0].argmax(-1) == ids[1:]
  sets = [SkipSet(), SkipSet((1, 2), (3,)), SkipSet((1, 2, 3), (1, 2, 3))]
  for window in (None, 7):
    found = matchness(lm, ids, sets, window)
    assert found.shape == (3,) and found[0] == pytest.approx(hits[-(window or len(ids) // 2) :].mean())
    np.testing.assert_array_equal(matchness(lm, ids, sets, window, at_once=2), found)
  for window in (0, len(ids)):
    with pytest.raises(ValueError, match='at least 1 and less than the 24 tokens'):
      matchness(lm, ids, sets, window)


@pytest.mark.parametrize('tied', [True, False])
def test_bytes_are_those_of_all_parameters_that_a_draft_step_reads(tied):
  lm = tiny_model(MODEL.replace(tied_embeddings=tied))
  costs, always = draft_bytes(lm)
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  assert costs.shape == (6,)
  assert costs[1] == sum(size(v) for k, v in lm.params['layer_2'].items() if k.startswith('attention'))
  assert costs[5] == sum(size(v) for k, v in lm.params['layer_3'].items() if k.startswith('mlp'))
  layers = sum(size(lm.params[f'layer_{i}']) for i in range(5))
  assert costs.sum() + always == layers + size(lm.params['embed' if tied else 'head'])
