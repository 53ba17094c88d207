"""Attention under a sliding window: the three ways of computing it agree, and a training cache uses the fastest."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.attention import banded
from jaxlm.attention.attend import attend
from jaxlm.attention.rule import AttentionRule

B, T, N, K, H = 2, 77, 4, 2, 8


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TABLE, KEYS, VALUES = (0.5 * normal(i, *shape) for i, shape in enumerate([(N, 32), (K, H), (K, H)]))
# Two documents with padding after them, and one document.
SEGMENTS = np.stack([np.repeat([1, 2, 0], [30, 33, 14]), np.ones(T, int)])
RULES = {
  'softmax': {},
  'a table by distance, softcap': {'position': 'relative_t5', 'distance_table': TABLE, 'softcap': 2.0},
  'sigmoid, count of keys, alibi': {'operation': 'sigmoid_len', 'position': 'alibi'},
  'an extra key and value': {'slot_key': KEYS, 'slot_value': VALUES},
}


def qkv(length=T, dtype='float32'):
  shapes = (B, length, N, H), (B, length, K, H), (B, length, K, H)
  return [normal(7 + i, *shape).astype(dtype) for i, shape in enumerate(shapes)]


@functools.partial(jax.jit, static_argnames='implementation')
def run(q, k, v, rule, segments, implementation):
  """Returns (output, gradients) of a loss that weighs all outputs of real tokens differently."""

  def loss(q, k, v):
    out = banded.attend(q, k, v, rule, segments, implementation).astype(jnp.float32)
    weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    real = 1.0 if segments is None else (segments > 0)[:, :, None, None]
    return (weight * real * out).sum(), out

  grads, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
  return out, grads


@pytest.mark.parametrize('fields', RULES.values(), ids=RULES)
@pytest.mark.parametrize('window', [1, 5])
def test_dense_shifted_and_chunked_are_one_attention(fields, window):
  """Check 4 of the Markov decoder: 77 tokens are no multiple of a block, and padding and a border of documents are there."""
  rule = AttentionRule(**{'operation': 'softmax', 'scale': H**-0.5, 'window': window} | fields)
  expected = run(*qkv(), rule, SEGMENTS, 'dense')
  for implementation in ('shifted', 'chunked'):
    chex.assert_trees_all_close(run(*qkv(), rule, SEGMENTS, implementation), expected, atol=1e-5)
  # The mask and the segments are not void.
  index = jnp.arange(T)[None]
  q, k, v = qkv()
  by_hand = attend(q, banded.heads_first(k), banded.heads_first(v), index, index, rule.replace(window=None))
  assert abs(by_hand - expected[0]).max() > 1e-2
  assert abs(run(*qkv(), rule, None, 'dense')[0] - expected[0]).max() > (1e-2 if window > 1 else -1)


@pytest.mark.parametrize('length, window', [(1, 3), (T, 40), (64, 32), (6, 9)])
def test_any_length_without_documents(length, window):
  rule = AttentionRule('softmax', H**-0.5, window=window)
  expected = run(*qkv(length), rule, None, 'dense')
  for implementation in ('shifted', 'chunked'):
    chex.assert_trees_all_close(run(*qkv(length), rule, None, implementation), expected, atol=1e-5)


def test_half_precision():
  rule = AttentionRule('softmax', H**-0.5, window=5)
  expected = run(*qkv(), rule, SEGMENTS, 'dense')[0]
  for implementation in ('shifted', 'chunked'):
    found = banded.attend(*qkv(dtype='bfloat16'), rule, SEGMENTS, implementation)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype('float32')[1], expected[1], atol=4e-2)


def test_a_training_cache_takes_blocks_for_long_sequences_alone():
  """The size of the largest array tells: T x T products are not there."""
  length, window = 256, 5

  def largest(rule, length=length):
    run = jax.jit(lambda q, k, v: caches.Sequence().attend(0, q, k, v, None, rule)[0])
    shapes = re.findall(r'tensor<(\d+x\d+x\d+x\d+x\d+)xf32>', run.lower(*qkv(length)).as_text())
    return max((tuple(map(int, shape.split('x'))) for shape in shapes), key=np.prod)

  rule = AttentionRule('softmax', H**-0.5, window=window)
  assert largest(rule) == (B * 8, K, N // K, 32, 32 + window - 1)
  whole = lambda n: (B, K, N // K, n, n)
  assert largest(rule, 107) == whole(107)  # Less than three times the 36 keys of a block.
  # Rules that blocks do not compute.
  for changes in ({'window': None}, {'window': 100}, {'prefix': 3}, {'causal': False}):
    assert largest(rule.replace(**changes)) == whole(length)
  dropout = rule.replace(dropout=0.5, dropout_key=jax.random.key(0))
  assert largest(dropout) == whole(length)
  for segments in (None, jnp.pad(SEGMENTS, ((0, 0), (0, length - T)))):
    found, _ = caches.Sequence(segments).attend(0, *qkv(length), None, rule)
    expected = banded.attend(*qkv(length), rule, segments, 'dense')
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_what_blocks_cannot_compute_is_refused():
  rule = AttentionRule('softmax', H**-0.5, window=5)
  for implementation, changes, message in (
    ('chunked', {'window': None}, "implementation='chunked' needs a causal rule with a window"),
    ('shifted', {'prefix': 2}, 'rule.prefix=2'),
    ('chunked', {'causal': False}, 'rule.causal=False'),
    ('chunked', {'dropout': 0.1}, "rule.dropout=0.1: use 'dense'"),
    ('sparse', {}, "implementation='sparse' must be one of dense, shifted, chunked"),
  ):
    with pytest.raises(ValueError, match=message):
      banded.attend(*qkv(4), rule.replace(**changes), implementation=implementation)
