"""Beams that change places in one cache attend as rows that are copied do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.attention.rule import AttentionRule
from jaxlm.config import ModelConfig, SinkConfig

B, W, N, K, H, CAPACITY = 2, 3, 4, 2, 8, 7
CONFIG = ModelConfig(num_layers=2, model_dim=N * H, num_heads=N, num_kv_heads=K, head_dim=H, dtype='float32')


@pytest.mark.parametrize('rule', [{}, {'window': 2}, {'operation': 'sigmoid'}], ids=['softmax', 'window', 'sigmoid'])
def test_beams_attend_as_copied_rows_do(rule):
  rule = AttentionRule(**{'operation': 'softmax', 'scale': 0.3} | rule)
  draw = np.random.default_rng(0)
  beams = caches.Beams.create(CONFIG, B, W, CAPACITY)
  rows = caches.LayeredCache.create(CONFIG, B * W, recent=CAPACITY)
  assert (
    isinstance(beams, caches.Cache)
    and beams.nbytes == caches.FullCache.create(CONFIG, B * W, CAPACITY).nbytes + beams.history.nbytes
  )
  attend = jax.jit(lambda cache, layer, *qkvp: cache.attend(layer, *qkvp, rule), static_argnums=1)
  for step in range(4):
    positions = jnp.repeat(jnp.array([0, 2]), W)[:, None] + step  # The sources begin at different positions.
    for layer in range(2):
      qkv = [jnp.asarray(draw.standard_normal((B * W, 1, heads, H)), jnp.float32) for heads in (N, K, K)]
      actual, beams = attend(beams, layer, *qkv, positions)
      expected, rows = attend(rows, layer, *qkv, positions)
      np.testing.assert_allclose(actual, expected, atol=1e-6)
    index = jnp.asarray(np.concatenate([b * W + draw.integers(0, W, W) for b in range(B)]))
    beams, rows = beams.reordered(index), rows.reordered(index)
  assert repr(beams).startswith('Beams(2 layers, 2 x 3 beams of 7 slots; ')


def test_what_beams_cannot_do_is_refused():
  beams = caches.Beams.create(CONFIG, B, W, CAPACITY)
  q, k = jnp.zeros((B * W, 2, N, H)), jnp.zeros((B * W, 2, K, H))
  with pytest.raises(ValueError, match='one token a row, not by 2'):
    beams.attend(0, q, k, k, jnp.zeros((B * W, 2), jnp.int32), AttentionRule('softmax', scale=1.0))
  with pytest.raises(ValueError, match='sink token'):
    caches.Beams.create(CONFIG.replace(sink=SinkConfig(kind='token')), B, W, CAPACITY)
