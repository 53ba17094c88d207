"""Dropout: its mean, its mask, and what it does to attention weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.attend import attend, attention_weights
from jaxlm.attention.dropout import dropped
from jaxlm.attention.rule import AttentionRule

KEYS = jax.random.split(jax.random.key(0), 4000)


@pytest.mark.parametrize('rate', [0.1, 0.6])
def test_numbers_are_0_at_the_rate_and_the_mean_stays(rate):
  x = jnp.asarray([[0.5, -2.0, 3.0]])
  y_K13 = np.asarray(jax.vmap(lambda key: dropped(x, rate, key))(KEYS))
  np.testing.assert_allclose((y_K13 == 0).mean(axis=0), rate, atol=0.04)
  np.testing.assert_allclose(y_K13.mean(axis=0), x, rtol=0.08)
  kept = np.where(y_K13 == 0, x / (1 - rate), y_K13)
  np.testing.assert_allclose(kept, np.broadcast_to(x / (1 - rate), kept.shape), rtol=1e-6)


def test_the_dtype_stays_and_a_key_has_one_mask():
  x = jnp.ones((5, 7), jnp.bfloat16)
  assert dropped(x, 0.5, KEYS[0]).dtype == jnp.bfloat16
  np.testing.assert_array_equal(dropped(x, 0.5, KEYS[0]), dropped(x, 0.5, KEYS[0]))
  assert (dropped(x, 0.5, KEYS[0]) != dropped(x, 0.5, KEYS[1])).any()


def test_attention_drops_weights_of_single_queries_heads_and_keys_the_slots_too():
  B, T, N, K, H = 2, 5, 4, 2, 3
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((B, T, N, H), (B, K, T, H), (B, K, T, H)))
  at = jnp.arange(T)[None]
  rule = AttentionRule('softmax', H**-0.5, slot_key=jnp.ones((K, H)), slot_value=jnp.ones((K, H)))
  with_key = lambda key: rule.replace(dropout=0.3, dropout_key=key)
  weights, slot = attention_weights(q, k, at, at, with_key(KEYS[0]))
  whole, whole_slot = attention_weights(q, k, at, at, rule)
  for some, all_of_them in ((weights, whole), (slot, whole_slot)):
    assert 0 < (some == 0)[all_of_them > 0].mean() < 1
    np.testing.assert_allclose(some, jnp.where(some == 0, 0, all_of_them / 0.7), rtol=1e-6)
  assert len({row.tobytes() for row in np.asarray(weights[..., -1, :] == 0).reshape(B * N, T)}) > 1
  # The output is linear in the weights, so its mean is what undropped weights give.
  mean = jax.vmap(lambda key: attend(q, k, v, at, at, with_key(key)))(KEYS).mean(axis=0)
  np.testing.assert_allclose(mean, attend(q, k, v, at, at, rule), atol=0.06)
