"""The blocks that are visited are those with a visible pair: no more, none twice, and each step's block is a new one to fetch."""

import dataclasses

import jax
import numpy as np
import pytest

from pallas_kernels import attention_visits as visits
from pallas_kernels.attention_calls import Form, Spec, _rule
from pallas_kernels.attention_kernels import same_segment
from tests.pallas_kernels import dense

# T, S, block of queries, block of keys, causal, window, prefix
CASES = [
  (130, 130, 16, 32, True, None, 0),
  (130, 130, 32, 16, True, 40, 0),
  (130, 130, 32, 16, True, 1, 20),
  (130, 130, 16, 16, False, 23, 50),
  (130, 130, 16, 16, False, None, 50),
  (50, 130, 16, 32, True, 37, 33),
  (130, 50, 16, 16, True, 17, 0),
  (130, 50, 16, 16, False, 17, 16),
]


def rule_of(T, S, block_q, block_k, causal, window, prefix):
  spec = Spec('softmax', causal, window, 1.0, 0.0, False, block_q, block_k, prefix=prefix)
  array = lambda length: jax.ShapeDtypeStruct((1, length, 1, 16), 'float32')
  return _rule(spec, Form('tpu', interpret=True), array(T), array(S), None)


def blocks_with_visible_pairs(rule, T, S, causal, window, prefix):
  """Returns [query blocks, key blocks]. Queries of padding count, since their positions do: the kernels do not know T."""
  padded_T = rule.query_blocks * rule.block_q
  seen = dense.visible(padded_T, S + padded_T - T, causal, window, prefix)[:, :S]
  seen = np.pad(seen, ((0, 0), (0, rule.key_blocks * rule.block_k - S)))
  return seen.reshape(rule.query_blocks, rule.block_q, rule.key_blocks, rule.block_k).any(axis=(1, 3))


def visited(block_at, blocks, steps):
  """Returns the block of each step, and whether the step visits it: each [blocks, steps]."""
  grid = np.arange(blocks, dtype=np.int32)[:, None], np.arange(steps, dtype=np.int32)[None]
  pairs = (np.broadcast_to(x, (blocks, steps)).ravel() for x in grid)
  return [np.asarray(x).reshape(blocks, steps) for x in jax.jit(jax.vmap(block_at))(*pairs)]


@pytest.mark.parametrize('T, S, block_q, block_k, causal, window, prefix', CASES)
@pytest.mark.parametrize('by', ['queries', 'keys'])
def test_visits_are_the_blocks_with_visible_pairs(by, T, S, block_q, block_k, causal, window, prefix):
  rule = rule_of(T, S, block_q, block_k, causal, window, prefix)
  expected = blocks_with_visible_pairs(rule, T, S, causal, window, prefix)
  if by == 'queries':
    found, seen = visited(lambda i, step: visits.key_block(i, step, rule), rule.query_blocks, visits.key_steps(rule))
  else:
    expected = expected.T
    found, seen = visited(lambda j, step: visits.query_block(j, step, rule), rule.key_blocks, visits.query_steps(rule))
  for row, row_seen, row_expected in zip(found, seen, expected):
    np.testing.assert_array_equal(row[row_seen], np.flatnonzero(row_expected))
    # The other steps come last. They stay at the block of the step before them, so that nothing is fetched for them.
    assert not row_seen[np.argmin(row_seen) :].any() or row_seen.all()
    assert len(set(row[~row_seen]) | set(row[row_seen][-1:])) <= 1
    assert ((row >= 0) & (row < len(row_expected))).all()


@pytest.mark.parametrize(
  'segments', [np.repeat(np.int32([3, 4, 9, 10]), [10, 70, 30, 18]), np.repeat(np.int32([-1, 0, 5]), [1, 57, 70])]
)
def test_a_block_visits_the_blocks_of_its_segments(segments):
  rule, shape = rule_of(128, 128, 16, 32, True, None, 0), (8, 16, 4, 32)
  pairs = same_segment(segments[:, None], segments[None]) & (np.arange(128)[:, None] >= np.arange(128))
  pairs = np.asarray(pairs).reshape(shape).any(axis=(1, 3))
  reach = [np.asarray(x)[0] for x in visits.in_segments(segments[None], segments[None], 16, 32)]
  from_keys = [np.asarray(x)[0] for x in visits.in_segments(segments[None], segments[None], 32, 16)]
  for i, row in enumerate(pairs):
    _, low, high = visits.keys_seen(np.int32(i), rule, [x[i] for x in reach])
    # A negative segment is at the front, and keeps the blocks after it within the range.
    assert (low, high) == (np.flatnonzero(row)[0], np.flatnonzero(row)[-1] + 1)
  for j, row in enumerate(pairs.T):
    low, high = visits.query_blocks(np.int32(j), rule, [x[j] for x in from_keys])
    assert (low, high) == (np.flatnonzero(row)[0], np.flatnonzero(row)[-1] + 1)


def test_blocks_without_a_shared_segment_are_not_visited():
  (first,), (end,) = visits.in_segments(np.int32([[1] * 16 + [2] * 16]), np.int32([[5] * 32]), 16, 16)
  assert first.tolist() == end.tolist() == [0, 0]


def test_a_window_takes_as_many_steps_as_it_has_blocks():
  rule = rule_of(4096, 4096, 64, 64, True, 128, 0)
  assert visits.key_steps(rule) == visits.query_steps(rule) == 4
  assert visits.key_steps(dataclasses.replace(rule, prefix=65)) == 6
