"""Empty rings for all layers: decoding with the last k tokens alone, from the first token on."""

import jax
import numpy as np
import pytest

from jaxlm.caches import FullCache, LayeredCache, Slots
from jaxlm.config import SinkConfig
from tests.lazy_models import Masked, forced
from tests.models import TINY, apply, tiny_model


@pytest.mark.parametrize(
  'variant',
  [
    {},
    {'num_kv_heads': 1, 'position': 'alibi'},
    {'attention': 'sigmoid', 'position': 'learned'},
    {'sink': SinkConfig('token')},
  ],
)
def test_decoding_from_an_empty_ring_equals_a_window_over_the_whole_sequence(variant):
  config, k, T = TINY.replace(**variant), 5, 20
  lm, tokens_BT = tiny_model(config), np.random.default_rng(4).integers(0, 50, (3, T), np.int32)
  expected = np.asarray(apply(config.replace(windows=(k,)), lm.params, tokens_BT)[0])
  ring = LayeredCache.create(config, 3, recent=k)
  assert ring.nbytes == 2 * 3 * (2 * config.num_kv_heads * k * 8 * 4 + k * 4 + 4)
  first, start = [], 0
  if ring.fresh:  # The model's own first token, which is read in one call with the first of the text.
    logits, ring = apply(config, lm.params, tokens_BT[:, :1], cache=ring)
    first, start = [logits], 1
  one_by_one = forced(lm.params, ring, np.full(3, start, np.int32), tokens_BT[:, start:], config=config)
  actual = np.concatenate([*first, one_by_one], axis=1)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
  wider = np.asarray(apply(config.replace(windows=(k + 1,)), lm.params, tokens_BT)[0])
  assert abs(wider - expected).max() > 1e-3


@pytest.mark.parametrize('at_once', [4, 9])
def test_a_ring_keeps_its_bytes_and_reads_many_tokens_at_once(at_once):
  """With first tokens that stay, against a full cache with a mask."""
  lm, tokens_BT = tiny_model(TINY), np.random.default_rng(4).integers(0, 50, (3, 30), np.int32)
  masked = Masked(FullCache.create(TINY, 3, 64), np.ones(3, bool), np.zeros(3, np.int32), 2, 8, True)
  expected = forced(lm.params, masked, np.zeros(3, np.int32), tokens_BT, config=TINY)
  empty = LayeredCache.create(TINY, 3, recent=8, initial=2)
  positions = np.broadcast_to(np.arange(at_once, dtype=np.int32), (3, at_once))
  logits, ring = apply(TINY, lm.params, tokens_BT[:, :at_once], positions, empty)
  np.testing.assert_allclose(logits, expected[:, :at_once], atol=1e-5)
  assert jax.tree.structure(ring) == jax.tree.structure(empty) and ring.nbytes == empty.nbytes
  rest = forced(lm.params, ring, np.full(3, at_once, np.int32), tokens_BT[:, at_once:], config=TINY)
  np.testing.assert_allclose(rest, expected[:, at_once:], atol=1e-5)


def test_a_ring_without_room_for_a_token_is_refused():
  with pytest.raises(ValueError, match='recent=0 must be at least 1'):
    Slots.ring(TINY, 3, recent=0)
  with pytest.raises(ValueError, match='initial=-1'):
    LayeredCache.create(TINY, 3, recent=4, initial=-1)
