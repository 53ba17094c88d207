"""Which blocks of keys a block of queries visits, and the reverse: blocks in which every pair is hidden are left out.

The visited key blocks are those of the prefix, 0 .. whole - 1, and those within reach, low .. high - 1. Visits are counted by a
`step` from 0, so that a window costs as many steps as it has blocks, in the grid of a TPU too, whose size does not depend on the
block of queries.
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


def keys_seen(query_block: jax.Array, rule: Rule):
  """Returns (whole, low, high), with whole <= low; whole is a Python number."""
  first, whole = query_block * rule.block_q + rule.offset, prefix_blocks(rule)
  low, high = blocks.within(first, rule.block_q, rule.before, rule.after, rule.block_k, rule.key_blocks)
  return whole, jnp.maximum(low, whole) if whole else low, high


def key_visits(whole: int, low, high):
  """Returns the number of visits, given the result of `keys_seen`."""
  return whole + jnp.maximum(high - low, 0)


def visited_key_block(step: jax.Array, whole: int, low):
  return jnp.where(step < whole, step, low + step - whole) if whole else low + step


def key_block(query_block: jax.Array, step: jax.Array, rule: Rule):
  """Returns (the key block of a step, whether there is one). If there is none, it is the last one visited."""
  whole, low, high = keys_seen(query_block, rule)
  last = jnp.where(high > low, high, max(whole, 1)) - 1
  return jnp.minimum(visited_key_block(step, whole, low), last), step < key_visits(whole, low, high)


def query_blocks(key_block: jax.Array, rule: Rule):
  """Returns (low, high): the query blocks that a block of keys visits are low .. high - 1."""
  first = key_block * rule.block_k
  # Key j is seen by the queries at positions j - after .. j + before.
  low, high = blocks.within(first - rule.offset, rule.block_k, rule.after, rule.before, rule.block_q, rule.query_blocks)
  if not rule.prefix:
    return low, high
  all_see = first < rule.prefix
  return jnp.where(all_see, 0, low), jnp.where(all_see, rule.query_blocks, high)


def query_block(key_block: jax.Array, step: jax.Array, rule: Rule):
  """Returns (the query block of a step, whether there is one). If there is none, it is the last one visited."""
  low, high = query_blocks(key_block, rule)
  return jnp.minimum(low + step, jnp.where(high > low, high, 1) - 1), step < high - low


def prefix_blocks(rule: Rule) -> int:
  return -(-rule.prefix // rule.block_k)


def _most_within(span: int, before: int | None, after: int | None, block: int):
  """Returns the largest number of blocks that a span of positions reaches; infinity if it reaches all on a side."""
  # A span of L positions overlaps one block, and one more for each started `block` of the other L - 1 positions.
  return float('inf') if None in (before, after) else -(-(span + before + after - 1) // block) + 1
