"""A mask of what comes before gives ordinary attention. Trees are tested with the drafts that learn from them."""

import jax
import numpy as np

from jaxlm import caches
from jaxlm.models import functions
from tests.models import TINY, init

SINK = TINY.replace(num_layers=1, sink=TINY.sink.__class__(kind='token'))


def test_a_causal_mask_is_ordinary_attention_and_every_token_sees_the_sink_token():
  tokens = np.random.default_rng(0).integers(0, 50, (2, 5)).astype(np.int32)
  mask = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))

  @jax.jit
  def both():
    params = init(SINK, jax.random.key(0))
    positions = np.broadcast_to(np.arange(5, dtype=np.int32), (2, 5))
    hidden = lambda cache: functions.hidden(params, SINK, tokens, positions, cache)[0]
    return hidden(caches.Masked(mask)), hidden(caches.Sequence())

  np.testing.assert_allclose(*both(), atol=1e-5)
