"""The assignment algorithm on a batch: one problem after the other, all in lockstep, or a Pallas kernel with a program for each."""

from __future__ import annotations

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.xla_metadata import set_xla_metadata
import jax.numpy as jnp

from pallas_kernels import assignment_paths as paths
from pallas_kernels import platforms

LARGEST_IN_VMEM = 1024
"""Largest T of the kernel: 4 MiB of costs, of two problems at a time. A TPU core has at least 16 MiB."""

SHORTEST_LOOP = 64


def each(cost_BTT, sizes_B):
  """For a CPU. Returns the column of each row, [B, T]."""
  B, T, _ = cost_BTT.shape
  # LLVM unrolls shorter loops and does not vectorise what is left, so that 32 columns take longer than 64.
  W = max(T, SHORTEST_LOOP)
  cost_BTW = jnp.pad(cost_BTT, ((0, 0), (0, 0), (0, W - T)))

  @jax.jit
  def match(cost_BTW, n, b):
    row = lambda i: paths.allowed(jax.lax.dynamic_slice(cost_BTW, (b, i, jnp.zeros_like(i)), (1, 1, W))[0], n)
    o = paths.Vectors(row, _pick, _least)
    return paths.match(o, paths.prices(o, row(jnp.zeros_like(n)), n), n)

  def one(problem):
    # XLA's CPU runtime starts a function for each operation of a loop, which takes longer than the operation on T numbers. These
    # attributes make it compile the loops of a problem to one function, as it does by itself for tiny loops: ten times as fast.
    # No operation here is large enough to be split over threads, which such a function does not allow.
    with set_xla_metadata(xla_cpu_small_call='true', inlineable='false'):
      return match(cost_BTW, *problem)

  return jax.lax.map(one, (sizes_B, jnp.arange(B, dtype=jnp.int32)))[:, 0, :T]


def lockstep(cost_BTT, sizes_B):
  """For an accelerator without the kernel: a step of all problems at once. Returns the column of each row, [B, T]."""

  def one(cost_TT, n):
    cost_TT = paths.allowed(cost_TT, n)
    u_T1 = paths.finite(jnp.min(cost_TT, axis=1, keepdims=True))
    is_row_T1 = jnp.arange(cost_TT.shape[0])[:, None] < n
    v_1T = paths.finite(jnp.min(jnp.where(is_row_T1, cost_TT - u_T1, jnp.inf), axis=0, keepdims=True))
    o = paths.Vectors(lambda i: jax.lax.dynamic_slice_in_dim(cost_TT, i, 1), _pick, _least)
    return paths.match_in_lockstep(o, v_1T, n)[0]

  return jax.vmap(one)(cost_BTT, sizes_B)


def _pick(x, j):
  return jax.lax.dynamic_index_in_dim(x[0], j, keepdims=False)


def _least(x):
  """Returns min(x). Floats are compared as integers of the same order: a CPU's minimum of floats, which keeps NaN, is slow."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.min(x)
  integer = jnp.dtype(f'int{8 * x.dtype.itemsize}')
  sign = jnp.iinfo(integer).bits - 1
  ordered = lambda bits: bits ^ ((bits >> sign) & jnp.iinfo(integer).max)  # Its own inverse.
  bits = jnp.min(ordered(jax.lax.bitcast_convert_type(x, integer)))
  return jax.lax.bitcast_convert_type(ordered(bits), x.dtype)


def _kernel(sizes_ref, cost_ref, column_of_ref):
  n = sizes_ref[pl.program_id(0)]
  row = lambda i: paths.allowed(cost_ref[pl.ds(i, 1), :], n)
  # A TPU reduces floats. Row and column numbers are exact as float32.
  as_float = lambda x: x.astype(jnp.float32)
  pick = lambda x, j: jnp.sum(jnp.where(paths.columns_of(x) == j, as_float(x), 0.0)).astype(x.dtype)
  least = lambda x: jnp.min(as_float(x)).astype(x.dtype)
  o = paths.Vectors(row, pick, least)
  column_of_ref[...] = paths.match(o, paths.prices(o, cost_ref[:1, :], n), n)


def kernel(cost_BTT, sizes_B, interpret: bool = False):
  """For a TPU: a program for each problem, whose costs stay in VMEM. Returns the column of each row, [B, T]."""
  B, T, _ = cost_BTT.shape
  padding = -T % 128  # Lanes.
  width = T + padding
  cost_BTT = jnp.pad(cost_BTT, ((0, 0), (0, padding), (0, padding)))
  block = lambda rows: pl.BlockSpec((None, rows, width), lambda b, sizes: (b, 0, 0))
  # Within shard_map, the result varies over the mesh axes over which the costs do. The name of this differs between versions of JAX.
  kind = jax.typeof(cost_BTT)
  varying = {name: getattr(kind, name) for name in ('vma', 'manual_axis_type') if hasattr(kind, name)}
  return pl.pallas_call(
    _kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(B,), in_specs=[block(width)], out_specs=block(1)
    ),
    out_shape=jax.ShapeDtypeStruct((B, 1, width), jnp.int32, **varying),
    interpret=interpret,
    name='linear_assignment',
  )(sizes_B, cost_BTT)[:, 0, :T]


def refused(cost_BTT, sizes_B):
  return platforms.refused(each(cost_BTT, sizes_B), kernels=('tpu',))


KINDS = {
  'each': each, 'lockstep': lockstep, 'kernel': kernel, 'interpret': functools.partial(kernel, interpret=True),
  'refused': refused,
}  # fmt: skip
"""How a batch may be solved: functions of float costs [B, T, T] and sizes [B], int32."""
