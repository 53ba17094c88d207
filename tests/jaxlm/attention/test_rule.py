"""Which keys a query sees, against loops, with and without causality; schemes by distance to both sides."""

import jax
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.attention import distance as schemes
from jaxlm.attention.attend import attend
from jaxlm.attention.rule import AttentionRule, layer_rule
from jaxlm.caches.full import of_prompt
from tests.jaxlm.attention.test_operations import H, N, oracle, ours, qkv, t5_bucket
from tests.models import TINY, float64

ALL = AttentionRule('softmax', H**-0.5, causal=False)


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('window', [None, 1, 3])
@pytest.mark.parametrize('by_head', [False, True])
def test_visible_equals_a_loop(causal, window, by_head):
  q_at, k_at = np.array([[0, 4, 5], [7, 8, 2]]), np.array([[0, 1, 5, 9], [2, 3, 7, 11]])
  rule = AttentionRule('softmax', 1.0, causal=causal, window=window)
  keys = np.stack([k_at, k_at + 1], axis=1) if by_head else k_at[:, None]
  sees = lambda i, j: (j <= i or not causal) and (window is None or abs(i - j) < window)
  expected = np.array([[[[sees(i, j) for j in head] for i in qs] for head in ks] for qs, ks in zip(q_at, keys)])
  found = jax.jit(rule.visible)(q_at, keys if by_head else k_at)
  np.testing.assert_array_equal(found, expected if by_head else expected[:, 0])


@pytest.mark.parametrize('operation', ['softmax', 'sigmoid_len'])
@pytest.mark.parametrize('window', [None, 2])
def test_both_sides_equal_loops(operation, window):
  rule = ALL.replace(operation=operation, window=window)
  sees = lambda i, j: window is None or abs(i - j) < window
  np.testing.assert_allclose(ours(*qkv(), rule), oracle(*qkv(), operation, sees=sees), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scheme', ['alibi', 'relative_t5', 'relative_paper'])
def test_schemes_by_distance_to_both_sides_equal_loops(scheme):
  table = np.random.default_rng(3).normal(size=(N, 32)).astype(np.float32)
  score = {
    'alibi': lambda n, i, j: -(2 ** (-8 * (n + 1) / N)) * abs(i - j),
    'relative_t5': lambda n, i, j: float(
      table[n, abs(i - j) + (16 if j > i else 0)]
    ),  # All distances here are below 8.
    'relative_paper': lambda n, i, j: float(t5_bucket(abs(i - j))),
  }[scheme]
  rule = ALL.replace(position=scheme, distance_table=table if scheme == 'relative_t5' else None)
  expected = oracle(*qkv(), 'softmax', score=score, sees=lambda i, j: True)
  np.testing.assert_allclose(ours(*qkv(), rule), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('x64', [False, True])
def test_buckets_of_both_sides_are_those_of_t5(x64):
  """Computed by transformers' T5Attention._relative_position_bucket, whose argument is the negative of ours."""
  theirs = {
    -200: 31,
    -128: 31,
    -64: 30,
    -20: 26,
    -9: 24,
    -8: 24,
    -7: 23,
    -1: 17,
    0: 0,
    1: 1,
    7: 7,
    8: 8,
    12: 9,
    40: 12,
    127: 15,
    500: 15,
  }
  with float64(x64):
    found = jax.jit(schemes.both_sides_bucket)(np.array(list(theirs)))
  assert found.tolist() == list(theirs.values())


def test_a_sequence_sees_both_sides_of_its_own_segment():
  q, k, v = qkv()
  segments = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 0, 0]])
  read = jax.jit(lambda *qkv: caches.Sequence(segments).attend(0, *qkv, None, ALL)[0])
  out = np.asarray(read(q, k.swapaxes(1, 2), v.swapaxes(1, 2)))
  for b in range(2):
    sees = lambda i, j, b=b: segments[b, i] == segments[b, j]
    np.testing.assert_allclose(out[b], oracle(q, k, v, 'softmax', sees=sees)[b], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('causal', [True, False])
def test_a_long_sequence_in_pieces_is_the_whole(causal):
  """1024 tokens and more are taken in pieces, each over the keys that it may see."""
  length = 1024
  rng = np.random.default_rng(0)
  q = rng.normal(size=(1, length, 1, 4)).astype(np.float32)
  k, v = rng.normal(size=(2, 1, length, 1, 4)).astype(np.float32)
  at = np.arange(length)[None]
  rule = AttentionRule('softmax', 0.5, causal=causal)
  whole = jax.jit(lambda q, k, v, rule: attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), at, at, rule))
  pieces = jax.jit(of_prompt)
  np.testing.assert_allclose(pieces(q, k, v, rule), whole(q, k, v, rule), atol=1e-5)
  # Under dropout all queries have masks of their own, whichever piece they would be in.
  dropping = rule.replace(dropout=0.5, dropout_key=jax.random.key(2))
  np.testing.assert_allclose(pieces(q, k, v, dropping), whole(q, k, v, dropping), atol=1e-5)


def test_a_cache_that_grows_needs_causality():
  assert not layer_rule(TINY.replace(causal=False), 0).causal and layer_rule(TINY, 0).causal
  with pytest.raises(ValueError, match='A cache that grows token by token needs a causal model.*causal=False'):
    caches.FullCache.create(TINY.replace(causal=False), 2, 8)
