"""Speculative beam search with transformers in float64: the lists of the plain search without exception, and scores to 1e-9."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.atspeed.config import AtSpeedConfig
from decoders.beam import constrained
from jaxlm.data.item_trie import ItemTrie
from tests.decoders.atspeed.double import DoubleReader, random_weights
from tests.decoders.atspeed.engine import speculate
from tests.models import float64

V, L, ITEMS, B = 40, 4, 200, 16
READER = DoubleReader()
EVERYDAY = AtSpeedConfig(k=10, beam=20, gamma=3)
GRID = [
  AtSpeedConfig(k=k, beam=beam, gamma=gamma, order=order)
  for k in (1, 5, 10, 20) for beam in sorted({k, 2 * k, 40}) for gamma, order in ((1, 'nested'), (2, 'score'), (3, 'score'))
]  # fmt: skip


@pytest.fixture(scope='module')
def case():
  """(weights of the target, the trie of 200 identifiers, histories, their lengths)."""
  rng = np.random.default_rng(0)
  codes = np.unique(rng.integers(0, V // L, (ITEMS, L)) + np.arange(L) * (V // L), axis=0)
  lengths = rng.integers(1, 24, B).astype(np.int32)
  tokens = rng.integers(0, V, (B, 24)).astype(np.int32)
  return random_weights(1, V), ItemTrie.from_ids(codes), tokens, lengths


def check(case, config: AtSpeedConfig):
  """Compares the searches with a draft that is a little wrong, and with one that knows nothing."""
  target, trie, tokens, lengths = case
  other = random_weights(2, V)
  drafts = {'near': {name: x + 0.1 * other[name] for name, x in target.items()}, 'other': other}
  with float64(True):
    expected = constrained.search(target, tokens, lengths, trie, reader=READER, width=config.k)
    assert expected.scores.dtype == np.float64
    run = jax.jit(functools.partial(speculate, config=config, reader=READER, drafter=READER))
    for name, draft in drafts.items():
      found = run(target, draft, tokens, lengths, trie)
      np.testing.assert_array_equal(found.beams.nodes, expected.leaves)
      np.testing.assert_allclose(found.beams.scores, expected.scores, rtol=0, atol=1e-9)
      np.testing.assert_array_equal(found.calls + found.accepted, L)
      assert (found.accepted > 0).any() if name == 'near' else (found.calls > 1).any()


@pytest.mark.parametrize('config', [EVERYDAY, *(pytest.param(c, marks=[pytest.mark.slow]) for c in GRID)])
def test_lists_are_equal_in_float64(case, config):
  check(case, config)


def test_scores_are_those_of_whole_identifiers(case):
  """Each identifier found, read again in one pass after its history, has the score of the search."""
  target, trie, tokens, lengths = case
  with float64(True):
    found = constrained.search(target, tokens, lengths, trie, reader=READER, width=10)
    codes = trie.tokens(np.asarray(found.leaves))
    # Row (b, k, t) holds history b and the first t codes of its identifier k.
    texts = np.zeros((B, 10, L, tokens.shape[1] + L), np.int32)
    for b, n in enumerate(lengths):
      texts[b, :, :, :n], texts[b, :, :, n : n + L] = tokens[b, :n], codes[b][:, None]
    ends = np.broadcast_to(lengths[:, None, None] + np.arange(L, dtype=np.int32), texts.shape[:3]).reshape(-1)
    states, _ = jax.jit(READER.prompt)(target, texts.reshape(len(ends), -1), ends, None)
    log_p = jax.nn.log_softmax(READER.logits(target, states)).reshape(B, 10, L, V)
    expected = jnp.take_along_axis(log_p, codes[..., None], axis=3).sum(axis=(2, 3))
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-9)
