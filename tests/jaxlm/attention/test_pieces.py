"""Attention in pieces is dense attention, for every operation, and a training cache takes it for long sequences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.attention import banded, pieces
from jaxlm.attention.operations import KERNELS, OPERATIONS
from jaxlm.attention.rule import AttentionRule
from tests.pallas_kernels.test_attention import shapes_in

pytestmark = pytest.mark.usefixtures('compile_quickly')

B, T, N, K, H = 2, 37, 4, 2, 8


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TABLE, KEYS, VALUES, LOGITS = (
  0.5 * normal(i, *shape) for i, shape in enumerate([(N, 32), (K, H), (K, H), (N,)])
)  # fmt: skip
SEGMENTS = np.stack([np.repeat([1, 2, 0], [14, 18, 5]), np.ones(T, int)])
RULES = {
  'a table by distance, softcap': {'position': 'relative_t5', 'distance_table': TABLE, 'softcap': 2.0},
  'alibi, window, offset': {'operation': 'sigmoid_len', 'position': 'alibi', 'window': 9, 'offset': -1.0},
  'an extra key and value, prefix': {'slot_key': KEYS, 'slot_value': VALUES, 'prefix': 20},
  'window and prefix': {'window': 5, 'prefix': 3},
  'a sink logit, power': {'slot_logit': LOGITS, 'power': 2.0, 'row_sum': 0.5},
  'both directions': {'causal': False, 'position': 'relative_t5', 'distance_table': TABLE},
  'both directions, window': {'causal': False, 'window': 6},
}


@pytest.fixture
def small(monkeypatch):
  """Seven pieces of 5 or 6 queries in three groups, from the first token on."""
  for name, value in {'SHORTEST': 1, 'FEWEST': 6, 'PIECE_WEIGHTS': 1, 'GROUPS': 3}.items():
    monkeypatch.setattr(pieces, name, value)


def qkv(positive=False, dtype='float32'):
  shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H)
  q, k, v = (normal(7 + i, *shape).astype(dtype) for i, shape in enumerate(shapes))
  return (abs(q), abs(k), v) if positive else (q, k, v)


def output_and_gradients(arrays, rule, segments=None):
  """Returns the gradients by (q, k, v) and by the rule's parameters, and the output, of attention as the cache chooses it."""

  def loss(arrays, rule):
    out, _ = caches.Sequence(segments).attend(0, *arrays, None, rule)
    out = out.astype(jnp.float32)
    return (jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape) * out).sum(), out

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(arrays, rule)


def check(arrays, rule, segments, monkeypatch, tolerance=1e-5):
  taken, attend = [], pieces.attend
  monkeypatch.setattr(pieces, 'attend', lambda *args: taken.append(1) or attend(*args))
  actual = output_and_gradients(arrays, rule, segments)
  assert taken
  monkeypatch.setattr(pieces, 'is_default', lambda *_: False)
  monkeypatch.setattr(banded, 'fastest', lambda *_: 'dense')
  expected = output_and_gradients(arrays, rule, segments)
  assert len(taken) == 1
  chex.assert_trees_all_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('operation', OPERATIONS)
def test_values_and_gradients_are_the_dense_ones(operation, small, monkeypatch):
  rule = AttentionRule(operation, H**-0.5)
  check(qkv(positive=operation in KERNELS), rule, None, monkeypatch)


def ruled(name):
  return AttentionRule(**{'operation': 'softmax', 'scale': H**-0.5} | RULES[name])


@pytest.mark.parametrize('name', RULES)
def test_every_rule_over_documents_after_a_sink_token(name, small, monkeypatch):
  check(qkv(), ruled(name), jnp.asarray(SEGMENTS[:, 1:]), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('segments', [None, SEGMENTS], ids=['alone', 'documents'])
@pytest.mark.parametrize('name', RULES)
def test_every_rule_with_and_without_documents(name, segments, small, monkeypatch):
  check(qkv(), ruled(name), None if segments is None else jnp.asarray(segments), monkeypatch)


def test_half_precision(small, monkeypatch):
  check(qkv(dtype=jnp.bfloat16), AttentionRule('softmax', H**-0.5), None, monkeypatch, 4e-2)


def test_short_sequences_dropout_and_narrow_windows_are_left_to_the_other_forms(monkeypatch):
  rule = AttentionRule('softmax', 1.0)
  assert [pieces.is_default(rule, length) for length in (1, 512, 1023, 1024, 8192)] == [False] * 3 + [True] * 2
  assert not pieces.is_default(rule.replace(dropout=0.1), 8192)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert [pieces.is_default(rule, length) for length in (1024, 4095, 4096)] == [False, False, True]
  widths = [pieces.beat_bands(rule.replace(window=w), 2048) for w in (1, 128, 129, 2048)]
  assert widths == [False, False, True, True]
  assert pieces.beat_bands(rule.replace(window=1, prefix=2), 2048)


@pytest.mark.parametrize(
  'fields', [{}, {'operation': 'identity_norm'}, {'window': 4096}, {'window': 300}, {'causal': False}], ids=str
)
def test_no_array_has_the_size_of_the_weights(fields):
  length, heads = 8192, 4
  rule = AttentionRule(**{'operation': 'softmax', 'scale': 0.1} | fields)
  x = jax.ShapeDtypeStruct((1, length, heads, 64), jnp.float32)
  segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
  loss = lambda q, k, v, segments: caches.Sequence(segments).attend(0, q, k, v, None, rule)[0].sum()
  program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(x, x, x, segments).jaxpr
  largest = max(int(np.prod(shape or (1,))) for shape in shapes_in(program))
  assert largest < heads * length**2 // 8
