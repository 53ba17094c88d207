"""The attention kernels of a GPU: each program loops over the blocks that it visits, with their sums in registers.

Array names carry shapes: B batch, T queries, S keys, N query heads, K key heads, G = N/K, H head dim.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from pallas_kernels import attention_kernels as kernels
from pallas_kernels import attention_visits as visits
from pallas_kernels import blocks


def forward(rule: kernels.Rule, options, slopes_BN, q_BNTH, k_BKSH, v_BKSH, segments):
  """Returns [out] or, for softmax, [out, lse [B, N, T]]. segments: those of queries [B, T] and of keys [B, S], or None."""
  (B, N, T, H), query, keys, column = q_BNTH.shape, *_blocks_by_query(rule, k_BKSH.shape[2:])
  of_segments, reach = _segments_by_query(rule, segments)
  ins = [(q_BNTH, query), (k_BKSH, keys), (v_BKSH, keys), *of_segments]
  outs = [((B, N, T, H), q_BNTH.dtype, query), ((B, N, T, 1), jnp.float32, column)]
  outs = outs[: 1 + (rule.operation == 'softmax')]
  out, *lse = _call(_forward, rule, options, reach, slopes_BN, (B, N, rule.query_blocks), ins, outs)
  return out, *(x[..., 0] for x in lse)


def query_gradient(rule: kernels.Rule, options, slopes_BN, q_BNTH, k_BKSH, v_BKSH, dout_BNTH, stats, segments):
  """Returns dq. stats: lse and delta [B, N, T], or ()."""
  (B, N, _, _), query, keys, column = q_BNTH.shape, *_blocks_by_query(rule, k_BKSH.shape[2:])
  ins = [(q_BNTH, query), (k_BKSH, keys), (v_BKSH, keys), (dout_BNTH, query)]
  of_segments, reach = _segments_by_query(rule, segments)
  ins += [(x[..., None], column) for x in stats] + of_segments
  outs = [(q_BNTH.shape, q_BNTH.dtype, query)]
  return _call(_query_gradient, rule, options, reach, slopes_BN, (B, N, rule.query_blocks), ins, outs)[0]


def key_gradients(rule: kernels.Rule, options, slopes_BN, q_BNTH, k_BKSH, v_BKSH, dout_BNTH, stats, segments):
  """Returns dk and dv, summed over the query heads of each group."""
  (B, K, _, H), (T, G) = k_BKSH.shape, (q_BNTH.shape[2], rule.group)
  key = pl.BlockSpec((None, None, rule.block_k, H), lambda b, k, j: (b, k, j, 0))
  group = pl.BlockSpec((None, G, T, H), lambda b, k, j: (b, k, 0, 0))
  rows = pl.BlockSpec((None, G, 1, T), lambda b, k, j: (b, k, 0, 0))
  ins = [(q_BNTH, group), (k_BKSH, key), (v_BKSH, key), (dout_BNTH, group)] + [(x[:, :, None], rows) for x in stats]
  reach = ()
  if segments is not None:
    reach = visits.in_segments(*segments[::-1], rule.block_k, rule.block_q)
    of_keys = pl.BlockSpec((None, rule.block_k, 1), lambda b, k, j: (b, j, 0))
    of_queries = pl.BlockSpec((None, 1, T), lambda b, k, j: (b, 0, 0))
    ins += [(segments[1][:, :, None], of_keys), (segments[0][:, None], of_queries)]
  outs = [(k_BKSH.shape, k_BKSH.dtype, key), (v_BKSH.shape, v_BKSH.dtype, key)]
  return _call(_key_gradients, rule, options, reach, slopes_BN, (B, K, rule.key_blocks), ins, outs)


def _forward(reach_refs, slope_ref, q_ref, k_ref, v_ref, *refs, rule: kernels.Rule):
  """refs: segments of the queries as a column and of the keys as a row, if there are any; O; for softmax, lse."""
  segments_refs, out_refs = (refs[:2], refs[2:]) if rule.segments else (None, refs)
  q_XH = q_ref[...]
  visits_to_keys, keys_at = _keys(reach_refs, slope_ref, segments_refs, rule)

  def add(step, state):
    at, pair = keys_at(step)
    return kernels.add_keys(state, q_XH, k_ref[at, :], v_ref[at, :], pair, rule)

  state = tuple(jnp.full(shape, fill, jnp.float32) for shape, fill in kernels.forward_state(rule, q_XH.shape[1]))
  state = lax.fori_loop(0, visits_to_keys, add, state)
  for ref, value in zip(out_refs, kernels.attended(state)):
    ref[...] = value.astype(ref.dtype)


def _query_gradient(reach_refs, slope_ref, q_ref, k_ref, v_ref, dout_ref, *refs, rule: kernels.Rule):
  """refs: for softmax, lse and delta as columns; segments as in `_forward`; dQ."""
  *refs, dq_ref = refs
  stats_refs, segments_refs = _stats_and_segments(refs, rule)
  q_XH, dout_XH, stats = q_ref[...], dout_ref[...], [ref[...] for ref in stats_refs]
  visits_to_keys, keys_at = _keys(reach_refs, slope_ref, segments_refs, rule)

  def add(step, dq_XH):
    at, pair = keys_at(step)
    return kernels.add_query_gradient(dq_XH, q_XH, k_ref[at, :], v_ref[at, :], dout_XH, stats, pair, rule)

  dq_XH = lax.fori_loop(0, visits_to_keys, add, jnp.zeros(q_XH.shape, jnp.float32))
  dq_ref[...] = (rule.scale * dq_XH).astype(dq_ref.dtype)


def _key_gradients(reach_refs, slope_ref, q_ref, k_ref, v_ref, dout_ref, *refs, rule: kernels.Rule):
  """refs: for softmax, lse and delta as rows; segments of the keys as a column and of the queries as a row; dK, dV."""
  *refs, dk_ref, dv_ref = refs
  stats_refs, segments_refs = _stats_and_segments(refs, rule)
  k_YH, v_YH, key_block = k_ref[...], v_ref[...], pl.program_id(2)
  batch, first_head = pl.program_id(0), pl.program_id(1) * rule.group
  low, high = visits.query_blocks(key_block, rule, visits.reach(reach_refs, batch, key_block))

  def add_head(g, sums):
    slope = slope_ref[batch, first_head + g]

    def add(i, sums):
      at = blocks.at(i, rule.block_q)
      segments = segments_refs and (segments_refs[0][...], segments_refs[1][:, at])
      pair = kernels.Pair(i * rule.block_q, key_block * rule.block_k, slope, segments)
      stats = [ref[g, :, at] for ref in stats_refs]
      return kernels.add_key_gradients(*sums, q_ref[g, at, :], k_YH, v_YH, dout_ref[g, at, :], stats, pair, rule)

    return lax.fori_loop(low, high, add, sums)

  zeros = jnp.zeros(k_YH.shape, jnp.float32)
  dk_YH, dv_YH = lax.fori_loop(0, rule.group, add_head, (zeros, zeros))
  dk_ref[...] = (rule.scale * dk_YH).astype(dk_ref.dtype)
  dv_ref[...] = dv_YH.astype(dv_ref.dtype)


def _keys(reach_refs, slope_ref, segments_refs, rule: kernels.Rule):
  """Returns how many key blocks the program visits, and a function from a step to their index and the pair of blocks."""
  slope, query_block = slope_ref[pl.program_id(0), pl.program_id(1)], pl.program_id(2)
  whole, low, high = visits.keys_seen(query_block, rule, visits.reach(reach_refs, pl.program_id(0), query_block))

  def keys_at(step):
    block = visits.visited_key_block(step, whole, low)
    at = blocks.at(block, rule.block_k)
    segments = segments_refs and (segments_refs[0][...], segments_refs[1][:, at])
    return at, kernels.Pair(query_block * rule.block_q, block * rule.block_k, slope, segments)

  return visits.key_visits(whole, low, high), keys_at


def _stats_and_segments(refs, rule: kernels.Rule):
  count = 2 if rule.operation == 'softmax' else 0
  return refs[:count], refs[count:] if rule.segments else None


def _blocks_by_query(rule: kernels.Rule, keys_SH: tuple[int, int]):
  """Returns the blocks of a grid (batch, query head, query block): of queries, all keys of a head, and columns."""
  S, H = keys_SH
  query = pl.BlockSpec((None, None, rule.block_q, H), lambda b, n, i: (b, n, i, 0))
  keys = pl.BlockSpec((None, None, S, H), lambda b, n, i: (b, n // rule.group, 0, 0))
  column = pl.BlockSpec((None, None, rule.block_q, 1), lambda b, n, i: (b, n, i, 0))
  return query, keys, column


def _segments_by_query(rule: kernels.Rule, segments):
  """Returns the segments with their blocks, and the blocks of keys that they let each block of queries see."""
  if segments is None:
    return [], ()
  column = pl.BlockSpec((None, rule.block_q, 1), lambda b, n, i: (b, i, 0))
  row = pl.BlockSpec((None, 1, segments[1].shape[1]), lambda b, n, i: (b, 0, 0))
  reach = visits.in_segments(*segments, rule.block_q, rule.block_k)
  return [(segments[0][:, :, None], column), (segments[1][:, None], row)], reach


def _call(kernel, rule: kernels.Rule, options, reach, slopes_BN, grid, ins, outs):
  """reach: what `visits.in_segments` returns for the blocks of the grid's third axis, or ()."""
  arrays, in_specs = zip(*ins)
  shapes, dtypes, out_specs = zip(*outs)
  return pl.pallas_call(
    lambda *refs: kernel(refs[: len(reach)], *refs[len(reach) :], rule=rule), grid=grid,
    in_specs=[*[pl.BlockSpec()] * (len(reach) + 1), *in_specs], out_specs=list(out_specs),
    out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes)],
    name=f'{rule.operation}_attention{kernel.__name__}', **options,
  )(*reach, slopes_BN, *arrays)  # fmt: skip


def launch(interpret: bool, num_warps: int, num_stages: int) -> dict:
  """Returns the options of a call: warps (groups of 32 threads) that share a block, and blocks that are loaded at the same time."""
  if interpret:
    return {'interpret': True}
  return {'compiler_params': plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages)}
