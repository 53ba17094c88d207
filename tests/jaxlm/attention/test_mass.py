"""Attention that tokens receive under a rule, through the kernels' XLA form, equals sums of the rule's own weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention import flash, mass
from jaxlm.attention.attend import attention_weights, heads_first
from jaxlm.attention.rule import AttentionRule

B, T, N, K, H = 2, 23, 4, 2, 8


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


KNOWN = {
  'window, alibi': {'window': 6, 'position': 'alibi'},
  'an extra key, softcap, offset': {'slot_key': normal(0, K, H), 'softcap': 2.0, 'offset': -0.5},
  'a sink logit': {'slot_logit': normal(1, N)},
  'both directions': {'causal': False, 'position': 'alibi'},
}
UNKNOWN = [
  {'operation': 'sigmoid_norm'},
  {'power': 2.0},
  {'row_sum': 0.5},
  {'prefix': 3},
  {'dropout': 0.1},
  {'position': 'relative_t5'},
]


@functools.partial(jax.jit, static_argnames='by_hand')
def sums(q, k, rule, factors, by_hand=False):
  if not by_hand:
    return mass.received(q, k, rule, factors)
  at = jnp.arange(T)[None]
  weights, slot = attention_weights(q, heads_first(k), at, at, rule)
  maps = weights if slot is None else jnp.concatenate([slot[..., None], weights], axis=-1)
  maps_BNTS = maps.reshape(B, N, T, -1)
  rows_BNT = maps_BNTS.sum(axis=-1)
  counted_BNTS = factors[:, None, :, None] * maps_BNTS
  return mass.Mass(counted_BNTS.sum(axis=2), (counted_BNTS / (rows_BNT[..., None] + 1e-8)).sum(axis=2), rows_BNT)


@pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('name', KNOWN)
def test_equals_sums_of_the_rules_weights(name, operation):
  rule = AttentionRule(operation, 0.4, **KNOWN[name])
  q, k = normal(2, B, T, N, H), normal(3, B, T, K, H)
  factors = (np.arange(T) < np.array([[T], [9]])).astype(np.float32)
  assert mass.knows(rule)
  for actual, expected in zip(sums(q, k, rule, factors), sums(q, k, rule, factors, by_hand=True), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('fields', UNKNOWN, ids=str)
def test_other_rules_are_not_known(fields):
  assert not mass.knows(AttentionRule(**{'operation': 'softmax', 'scale': 1.0} | fields))


def test_a_cpu_sums_the_weights_of_pieces(monkeypatch):
  rule = AttentionRule('softmax', 1.0)
  assert not mass.is_default(rule, 4096)
  monkeypatch.setattr(flash, 'has_kernels', lambda: True)
  assert (
    mass.is_default(rule, 4096) and not mass.is_default(rule, 64) and not mass.is_default(rule.replace(power=2.0), 4096)
  )
