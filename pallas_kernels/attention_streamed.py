"""The attention kernels of a TPU: the last axis of the grid visits blocks one by one, with their sums in scratch memory.

VMEM holds one block of each array (two while the next one is fetched), whatever the lengths and the number of heads in a group are.
A step without a visible block computes nothing and fetches nothing new.

Numbers of queries, such as lse, are rows in memory: a column takes 128 times its size there. The kernels turn them once per block.

Array names carry shapes: B batch, T queries, S keys, N query heads, K key heads, H head dim.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from pallas_kernels import attention_kernels as kernels
from pallas_kernels import attention_visits as visits


def forward(rule: kernels.Rule, interpret, slopes_BN, q_BNTH, k_BKSH, v_BKSH, segments):
  """Returns [out] or, for softmax, [out, lse [B, N, T]]. segments: those of queries [B, T] and of keys [B, S], or None."""
  (B, N, T, H), query, key, row = q_BNTH.shape, *_blocks_by_query(rule, q_BNTH.shape[3])
  of_segments, reach = _segments_by_query(rule, segments)
  ins = [(q_BNTH, query), (k_BKSH, key), (v_BKSH, key), *of_segments]
  outs = [((B, N, T, H), q_BNTH.dtype, query), ((B, N, 1, T), jnp.float32, row)]
  state = kernels.forward_state(rule, H)
  grid = (B, N, rule.query_blocks, visits.key_steps(rule))
  outs = outs[: 1 + (rule.operation == 'softmax')]
  out, *lse = _call(_forward, rule, interpret, reach, slopes_BN, grid, ins, outs, state)
  return out, *(x[:, :, 0] for x in lse)


def query_gradient(rule: kernels.Rule, interpret, slopes_BN, q_BNTH, k_BKSH, v_BKSH, dout_BNTH, stats, segments):
  """Returns dq. stats: lse and delta [B, N, T], or ()."""
  (B, N, _, H), query, key, row = q_BNTH.shape, *_blocks_by_query(rule, q_BNTH.shape[3])
  ins = [(q_BNTH, query), (k_BKSH, key), (v_BKSH, key), (dout_BNTH, query)]
  of_segments, reach = _segments_by_query(rule, segments)
  ins += [(x[:, :, None], row) for x in stats] + of_segments
  outs = [(q_BNTH.shape, q_BNTH.dtype, query)]
  grid = (B, N, rule.query_blocks, visits.key_steps(rule))
  state = [((rule.block_q, H), 0.0), *[((rule.block_q, 1), 0.0)] * len(stats)]
  return _call(_query_gradient, rule, interpret, reach, slopes_BN, grid, ins, outs, state)[0]


def key_gradients(rule: kernels.Rule, interpret, slopes_BN, q_BNTH, k_BKSH, v_BKSH, dout_BNTH, stats, segments):
  """Returns dk and dv, summed over the query heads of each group: the last axis visits the blocks of one head after the other."""
  arrays = slopes_BN, q_BNTH, k_BKSH, v_BKSH, dout_BNTH, stats, segments
  beyond = dataclasses.replace(rule, prefix=0)
  if 0 < (whole := visits.prefix_blocks(rule)) < rule.key_blocks and visits.query_steps(beyond) < rule.query_blocks:
    return _key_gradients_in_two(rule, beyond, whole, interpret, *arrays)
  (B, K, _, H), G, steps = k_BKSH.shape, rule.group, visits.query_steps(rule)

  def block(b, j, step, reach):
    return visits.query_block(j, lax.rem(step, np.int32(steps)), rule, visits.reach(reach, b, j))[0]

  head = lambda k, step: k * G + lax.div(step, np.int32(steps))
  key = pl.BlockSpec((None, None, rule.block_k, H), lambda b, k, j, s, *_: (b, k, j, 0))
  query = pl.BlockSpec((None, None, rule.block_q, H), lambda b, k, j, s, *r: (b, head(k, s), block(b, j, s, r), 0))
  row = pl.BlockSpec((None, None, 1, rule.block_q), lambda b, k, j, s, *r: (b, head(k, s), 0, block(b, j, s, r)))
  ins = [(q_BNTH, query), (k_BKSH, key), (v_BKSH, key), (dout_BNTH, query)]
  ins += [(x[:, :, None], row) for x in stats]
  reach = ()
  if segments is not None:
    reach = visits.in_segments(*segments[::-1], rule.block_k, rule.block_q)
    of_keys = pl.BlockSpec((None, rule.block_k, 1), lambda b, k, j, s, *_: (b, j, 0))
    of_queries = pl.BlockSpec((None, 1, rule.block_q), lambda b, k, j, s, *r: (b, 0, block(b, j, s, r)))
    ins += [(segments[1][:, :, None], of_keys), (segments[0][:, None], of_queries)]
  outs = [(k_BKSH.shape, k_BKSH.dtype, key), (v_BKSH.shape, v_BKSH.dtype, key)]
  state = [((rule.block_k, H), 0.0)] * 2
  grid = (B, K, rule.key_blocks, G * steps)
  return _call(_key_gradients, rule, interpret, reach, slopes_BN, grid, ins, outs, state)


def _key_gradients_in_two(
  rule: kernels.Rule, beyond: kernels.Rule, whole: int, interpret, slopes_BN, q_BNTH, k_BKSH, v_BKSH, dout_BNTH, stats, segments
):  # fmt: skip
  """Returns the result of `key_gradients` for the blocks of the prefix, which all queries visit, and for the others.

  All blocks of keys in one grid take the same number of steps, so that in one call a window would not save any.
  """
  n = whole * rule.block_k
  rules = (
    dataclasses.replace(rule, key_blocks=whole),
    dataclasses.replace(beyond, key_blocks=rule.key_blocks - whole, keys=rule.keys - n, offset=rule.offset - n),
  )
  parts = []
  for part, at in zip(rules, (slice(n), slice(n, None))):
    of_part = None if segments is None else (segments[0], segments[1][:, at])
    keys = k_BKSH[:, :, at], v_BKSH[:, :, at]
    parts.append(key_gradients(part, interpret, slopes_BN, q_BNTH, *keys, dout_BNTH, stats, of_part))
  return [jnp.concatenate(pair, axis=2) for pair in zip(*parts)]


def _forward(reach_refs, slope_ref, q_ref, k_ref, v_ref, *refs, rule: kernels.Rule):
  """refs: segments of the queries as a column and of the keys as a row, if there are any; O; for softmax, lse; the sums."""
  segments_refs, refs = _segments_first(refs, rule)
  softmax = rule.operation == 'softmax'
  out_refs, sum_refs = refs[: 1 + softmax], refs[1 + softmax :]
  pair_at, seen = _pair_by_query(reach_refs, slope_ref, rule)
  _at_first_step(sum_refs, kernels.forward_state(rule, q_ref.shape[1]))

  @pl.when(seen)
  def _():
    arrays, pair = (q_ref[...], k_ref[...], v_ref[...]), pair_at(_values(segments_refs))
    state = kernels.add_keys(_values(sum_refs), *arrays, pair, rule)
    _write(sum_refs, state)

  @pl.when(_is_last_step())
  def _():
    out, *lse_X1 = kernels.attended(_values(sum_refs))
    _write(out_refs, [out, *map(_row, lse_X1)])


def _query_gradient(reach_refs, slope_ref, q_ref, k_ref, v_ref, dout_ref, *refs, rule: kernels.Rule):
  """refs: for softmax, lse and delta as rows; segments as in `_forward`; dQ; its sum; lse and delta as columns."""
  row_refs, refs = _stats_first(refs, rule)
  *segments_refs, dq_ref, sum_ref = refs[: len(refs) - len(row_refs)]
  stats_refs = refs[len(refs) - len(row_refs) :]
  pair_at, seen = _pair_by_query(reach_refs, slope_ref, rule)
  _at_first_step([sum_ref], [(sum_ref.shape, 0.0)])

  @pl.when(pl.program_id(3) == 0)
  def _():
    _write(stats_refs, [_column(ref[...]) for ref in row_refs])

  @pl.when(seen)
  def _():
    arrays = q_ref[...], k_ref[...], v_ref[...], dout_ref[...]
    stats, pair = _values(stats_refs) or (), pair_at(_values(segments_refs))
    sum_ref[...] = kernels.add_query_gradient(sum_ref[...], *arrays, stats, pair, rule)

  @pl.when(_is_last_step())
  def _():
    _write([dq_ref], [rule.scale * sum_ref[...]])


def _key_gradients(reach_refs, slope_ref, q_ref, k_ref, v_ref, dout_ref, *refs, rule: kernels.Rule):
  """refs: for softmax, lse and delta as rows; segments of the keys as a column and of the queries as a row; dK, dV; their sums."""
  stats_refs, (*segments_refs, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref) = _stats_first(refs, rule)
  steps, step = np.int32(visits.query_steps(rule)), pl.program_id(3)
  reach = visits.reach(reach_refs, pl.program_id(0), pl.program_id(2))
  block, seen = visits.query_block(pl.program_id(2), lax.rem(step, steps), rule, reach)
  slope = slope_ref[pl.program_id(0), pl.program_id(1) * rule.group + lax.div(step, steps)]
  pair_at = functools.partial(kernels.Pair, block * rule.block_q, pl.program_id(2) * rule.block_k, slope)
  sum_refs = [dk_sum_ref, dv_sum_ref]
  _at_first_step(sum_refs, [(ref.shape, 0.0) for ref in sum_refs])

  @pl.when(seen)
  def _():
    arrays = q_ref[...], k_ref[...], v_ref[...], dout_ref[...]
    stats, pair = _values(stats_refs) or (), pair_at(_values(segments_refs))
    _write(sum_refs, kernels.add_key_gradients(*_values(sum_refs), *arrays, stats, pair, rule))

  @pl.when(_is_last_step())
  def _():
    _write([dk_ref, dv_ref], [rule.scale * dk_sum_ref[...], dv_sum_ref[...]])


def _pair_by_query(reach_refs, slope_ref, rule: kernels.Rule):
  """Returns a function from segments to the Pair of a step's blocks, and whether the step has a block of keys."""
  reach = visits.reach(reach_refs, pl.program_id(0), pl.program_id(2))
  block, seen = visits.key_block(pl.program_id(2), pl.program_id(3), rule, reach)
  slope = slope_ref[pl.program_id(0), pl.program_id(1)]
  return functools.partial(kernels.Pair, pl.program_id(2) * rule.block_q, block * rule.block_k, slope), seen


def _segments_first(refs, rule: kernels.Rule):
  return (refs[:2], refs[2:]) if rule.segments else ((), refs)


def _stats_first(refs, rule: kernels.Rule):
  return (refs[:2], refs[2:]) if rule.operation == 'softmax' else ((), refs)


def _values(refs):
  return tuple(ref[...] for ref in refs) or None


def _write(refs, values) -> None:
  for ref, value in zip(refs, values):
    ref[...] = value.astype(ref.dtype)


def _row(x_X1):
  """Returns a column as a row [1, X], by transposing whole tiles of 128 lanes."""
  return jnp.broadcast_to(x_X1, (x_X1.shape[0], 128)).T[:1]


def _column(x_1X):
  """Returns a row as a column [X, 1]."""
  return jnp.broadcast_to(x_1X, (128, x_1X.shape[1])).T[:, :1]


def _at_first_step(refs, state) -> None:
  @pl.when(pl.program_id(3) == 0)
  def _():
    for ref, (shape, fill) in zip(refs, state):
      ref[...] = jnp.full(shape, fill, jnp.float32)


def _is_last_step():
  return pl.program_id(3) == pl.num_programs(3) - 1


def _blocks_by_query(rule: kernels.Rule, H: int):
  """Returns the blocks of a grid (batch, query head, query block, step): of queries, keys and rows of numbers of queries."""
  key_block = lambda b, i, step, reach: visits.key_block(i, step, rule, visits.reach(reach, b, i))[0]
  query = pl.BlockSpec((None, None, rule.block_q, H), lambda b, n, i, s, *_: (b, n, i, 0))
  key = pl.BlockSpec(
    (None, None, rule.block_k, H), lambda b, n, i, s, *r: (b, n // rule.group, key_block(b, i, s, r), 0)
  )
  row = pl.BlockSpec((None, None, 1, rule.block_q), lambda b, n, i, s, *_: (b, n, 0, i))
  return query, key, row


def _segments_by_query(rule: kernels.Rule, segments):
  """Returns the segments with their blocks, and the blocks of keys that they let each block of queries see."""
  if segments is None:
    return [], ()
  key_block = lambda b, i, step, reach: visits.key_block(i, step, rule, visits.reach(reach, b, i))[0]
  column = pl.BlockSpec((None, rule.block_q, 1), lambda b, n, i, s, *_: (b, i, 0))
  row = pl.BlockSpec((None, 1, rule.block_k), lambda b, n, i, s, *r: (b, 0, key_block(b, i, s, r)))
  reach = visits.in_segments(*segments, rule.block_q, rule.block_k)
  return [(segments[0][:, :, None], column), (segments[1][:, None], row)], reach


def _call(kernel, rule: kernels.Rule, interpret, reach, slopes_BN, grid, ins, outs, state):
  """reach: what `visits.in_segments` returns for the blocks of the grid's third axis, or ()."""
  arrays, in_specs = zip(*ins)
  shapes, dtypes, out_specs = zip(*outs)
  blocks = [(spec.block_shape, x.dtype) for x, spec in ins] + [(spec.block_shape, dtype) for _, dtype, spec in outs]
  return pl.pallas_call(
    lambda *refs: kernel(refs[: len(reach)], *refs[len(reach) :], rule=rule),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(reach), grid=grid, in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs],
      out_specs=list(out_specs), scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape, _ in state],
    ),
    out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=_vmem_limit(blocks, state, rule),
    ),
    interpret=interpret, name=f'{rule.operation}_attention{kernel.__name__}',
  )(*reach, slopes_BN, *arrays)  # fmt: skip


def _vmem_limit(blocks, state, rule: kernels.Rule) -> int | None:
  """Returns a VMEM limit that fits the sums and the double-buffered blocks, or None if the default of 16 MiB is enough."""
  size = lambda shape, dtype: math.prod(d or 1 for d in shape) * jnp.dtype(dtype).itemsize
  # A column takes as much as a block of 128 columns. About eight [block_q, block_k] arrays in float32 exist at a time.
  wide = lambda shape: (*shape[:-1], max(shape[-1], 128))
  buffers = 2 * sum(size(wide(shape), dtype) for shape, dtype in blocks)
  sums = sum(size(wide(shape), jnp.float32) for shape, _ in state)
  needed = buffers + sums + 8 * 4 * rule.block_q * rule.block_k + 2**21
  return needed if needed > 2**24 else None
