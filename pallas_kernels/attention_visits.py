"""Which blocks of keys a block of queries visits, and the reverse: blocks in which every pair is hidden are left out.

The visited key blocks are those of the prefix, 0 .. whole - 1, and those within reach, low .. high - 1. Visits are counted by a
`step` from 0, so that a window costs as many steps as it has blocks, in the grid of a TPU too, whose size does not depend on the
block of queries.

Positions alone decide this before the program runs. With segments, `in_segments` gives each block the range of the blocks that its
segments reach, which narrows low .. high - 1 further.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import blocks
from pallas_kernels.attention_kernels import Rule


def key_steps(rule: Rule) -> int:
  """Returns the largest number of key blocks that a block of queries visits."""
  return min(rule.key_blocks, prefix_blocks(rule) + _most_within(rule.block_q, rule.before, rule.after, rule.block_k))


def query_steps(rule: Rule) -> int:
  """Returns the largest number of query blocks that a block of keys visits."""
  if rule.prefix:
    return rule.query_blocks
  return min(rule.query_blocks, _most_within(rule.block_k, rule.after, rule.before, rule.block_q))


def in_segments(
  rows_BT: jax.Array, columns_BS: jax.Array, block: int, column_block: int
) -> tuple[jax.Array, jax.Array]:
  """Returns (first, end), each [B, row blocks] int32: a block of rows shares segments with the column blocks first .. end - 1 alone.

  The range is the smallest one if segments rise along the sequence. A negative segment is shared by all: see `same_segment`.
  """
  (low_BR, high_BR), (low_BC, high_BC) = _segments_of(rows_BT, block), _segments_of(columns_BS, column_block)
  shared_BRC = (low_BR[:, :, None] <= high_BC[:, None]) & (low_BC[:, None] <= high_BR[:, :, None])
  count = shared_BRC.shape[2]
  first_BR, last_BR = jnp.argmax(shared_BRC, axis=2), count - 1 - jnp.argmax(shared_BRC[:, :, ::-1], axis=2)
  end_BR = jnp.where(shared_BRC.any(axis=2), last_BR + 1, 0)
  return first_BR.astype(jnp.int32), end_BR.astype(jnp.int32)


def reach(refs, batch: jax.Array, block: jax.Array):
  """Returns (first, end) of one block, given refs to the arrays that `in_segments` returns; None if there are none."""
  return tuple(ref[batch, block] for ref in refs) or None


def _segments_of(segments_BT: jax.Array, block: int):
  """Returns the lowest and the highest segment of each block [B, blocks]."""
  x_BCX = segments_BT.reshape(len(segments_BT), -1, block)
  info, shared = jnp.iinfo(x_BCX.dtype), x_BCX.min(axis=2) < 0
  return jnp.where(shared, info.min, x_BCX.min(axis=2)), jnp.where(shared, info.max, x_BCX.max(axis=2))


def keys_seen(query_block: jax.Array, rule: Rule, reach=None):
  """Returns (whole, low, high), with whole <= low; whole is a Python number. reach: what `in_segments` returns for the block."""
  first, whole = query_block * rule.block_q + rule.offset, prefix_blocks(rule)
  low, high = blocks.within(first, rule.block_q, rule.before, rule.after, rule.block_k, rule.key_blocks)
  low, high = _narrowed(low, high, reach)
  return whole, jnp.maximum(low, whole) if whole else low, high


def _narrowed(low, high, reach):
  return (low, high) if reach is None else (jnp.maximum(low, reach[0]), jnp.minimum(high, reach[1]))


def key_visits(whole: int, low, high):
  """Returns the number of visits, given the result of `keys_seen`."""
  return whole + jnp.maximum(high - low, 0)


def visited_key_block(step: jax.Array, whole: int, low):
  return jnp.where(step < whole, step, low + step - whole) if whole else low + step


def key_block(query_block: jax.Array, step: jax.Array, rule: Rule, reach=None):
  """Returns (the key block of a step, whether there is one). If there is none, it is the last one visited."""
  whole, low, high = keys_seen(query_block, rule, reach)
  last = jnp.where(high > low, high, max(whole, 1)) - 1
  return jnp.minimum(visited_key_block(step, whole, low), last), step < key_visits(whole, low, high)


def query_blocks(key_block: jax.Array, rule: Rule, reach=None):
  """Returns (low, high): the query blocks that a block of keys visits are low .. high - 1. reach: as for `keys_seen`."""
  first = key_block * rule.block_k
  # Key j is seen by the queries at positions j - after .. j + before.
  low, high = blocks.within(first - rule.offset, rule.block_k, rule.after, rule.before, rule.block_q, rule.query_blocks)
  if rule.prefix:
    all_see = first < rule.prefix
    low, high = jnp.where(all_see, 0, low), jnp.where(all_see, rule.query_blocks, high)
  return _narrowed(low, high, reach)


def query_block(key_block: jax.Array, step: jax.Array, rule: Rule, reach=None):
  """Returns (the query block of a step, whether there is one). If there is none, it is the last one visited."""
  low, high = query_blocks(key_block, rule, reach)
  return jnp.minimum(low + step, jnp.where(high > low, high, 1) - 1), step < high - low


def prefix_blocks(rule: Rule) -> int:
  return -(-rule.prefix // rule.block_k)


def _most_within(span: int, before: int | None, after: int | None, block: int):
  """Returns the largest number of blocks that a span of positions reaches; infinity if it reaches all on a side."""
  # A span of L positions overlaps one block, and one more for each started `block` of the other L - 1 positions.
  return float('inf') if None in (before, after) else -(-(span + before + after - 1) // block) + 1
