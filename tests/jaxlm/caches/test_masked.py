"""A mask of what comes before gives ordinary attention, and a tree gives each path alone."""

import jax
import numpy as np

from jaxlm import caches
from jaxlm.models import functions
from tests.models import TINY, init

SINK = TINY.replace(sink=TINY.sink.__class__(kind='token'))


def test_a_causal_mask_is_ordinary_attention_with_and_without_a_sink_token():
  tokens = np.random.default_rng(0).integers(0, 50, (2, 5)).astype(np.int32)
  mask = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))
  for config in (TINY, SINK):

    @jax.jit
    def both(config=config):
      params = init(config, jax.random.key(0))
      positions = np.broadcast_to(np.arange(5, dtype=np.int32), (2, 5))
      hidden = lambda cache: functions.hidden(params, config, tokens, positions, cache)[0]
      return hidden(caches.Masked(mask)), hidden(caches.Sequence())

    np.testing.assert_allclose(*both(), atol=1e-5)
