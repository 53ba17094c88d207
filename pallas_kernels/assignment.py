"""Exact assignment on the device: the permutation of the least total cost, for a batch of matrices of different sizes.

  columns = argmin over permutations o of 0 .. n - 1 of  sum_i cost[i, o(i)]

assignment_paths.py has the algorithm and assignment_calls.py runs it on a batch, in XLA operations or as a Pallas kernel.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
from jax.experimental.custom_partitioning import custom_partitioning
import jax.numpy as jnp

from pallas_kernels import assignment_calls as calls
from pallas_kernels import platforms

if TYPE_CHECKING:
  from jaxtyping import Array, Int, Num

IMPLEMENTATIONS = ('pallas', 'xla')
XLA = {'cpu': 'each', 'tpu': 'lockstep', 'cuda': 'lockstep', 'rocm': 'lockstep'}
"""Platform -> how XLA solves a batch. A CPU does the same work for any order of it; the others need wide operations."""


def linear_assignment(
  cost: Num[Array, 'B T T'],
  sizes: Int[Array, ' B'] | None = None,
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> Int[Array, 'B T']:
  """Returns the column of each row, int32: the permutation of the top left sizes[b] rows and columns with the least total cost.

  Rows from sizes[b] on are padding and get the column of their own number, whatever costs stand there. If several permutations have
  the least cost, the result is one of them. It is exact up to rounding: costs are compared in float32 (float64 costs in float64),
  so the total is within about 1e-7 T max|cost| of the least, and equal to it for integers up to 2^24 / T. No gradient flows through.

  Args:
    cost: any real dtype, negative or not, up to 1e35. +inf forbids a pair. NaN and -inf do the same. If no permutation avoids
      these, as many rows as possible get a column that is allowed, and the others what is left, in order.
    sizes: number of rows and columns of each problem, 0 .. T; None: T.
    implementation: 'pallas' (TPU, T up to 1024, not float64) or 'xla' (everywhere, without a call of the host). None chooses the
      kernel on a TPU, if it is possible, and 'xla' otherwise.
    interpret: run the kernel as ordinary JAX operations on any platform, whatever `implementation` says; slow, for tests.

  Raises:
    ValueError: shapes do not fit together, or the dtype, T or platform is not for the kernel.
  """
  cost = jnp.asarray(cost)
  sizes = jnp.full(cost.shape[:1], cost.shape[-1]) if sizes is None else jnp.asarray(sizes)
  kinds = _kinds(cost, sizes, implementation, interpret)
  return _solve(tuple(kinds.items()))(jax.lax.stop_gradient(cost), sizes)


def _kinds(cost, sizes, implementation, interpret) -> dict[str, str]:
  """Returns platform -> how a batch is solved, one of `calls.KINDS`; the platform 'default' is all others."""
  if cost.ndim != 3 or cost.shape[1] != cost.shape[2] or sizes.shape != cost.shape[:1]:
    raise ValueError(f'cost {cost.shape}, sizes {sizes.shape}: expected [B, T, T] and [B].')
  if not jnp.issubdtype(sizes.dtype, jnp.integer) or jnp.issubdtype(cost.dtype, jnp.complexfloating):
    raise ValueError(f'cost {cost.dtype}, sizes {sizes.dtype}: expected real numbers and integers.')
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f'{implementation=} is not one of {", ".join(IMPLEMENTATIONS)}, or None.')
  fits = cost.shape[1] <= calls.LARGEST_IN_VMEM and cost.dtype != jnp.float64
  if (interpret or implementation == 'pallas') and not fits:
    raise ValueError(
      f"cost {cost.dtype}{cost.shape}: the kernel needs T <= {calls.LARGEST_IN_VMEM} and not float64. Use 'xla'."
    )
  if interpret:
    return {'default': 'interpret'}
  if implementation == 'pallas':
    platforms.require(('tpu',), cost)
    return {'tpu': 'kernel', 'default': 'refused'}
  return XLA | ({'tpu': 'kernel'} if implementation is None and fits else {})


@functools.cache
def _solve(kinds: tuple[tuple[str, str], ...]):
  """Returns the function of (cost, sizes) that solves a batch in the given way on each platform."""

  @custom_partitioning
  def solve_rows(cost, sizes):
    branches = {platform: functools.partial(_columns, kind) for platform, kind in kinds}
    return jax.lax.platform_dependent(cost, sizes, **branches)

  def partition(mesh, args, result):
    # A program over several devices splits the problems, and no problem: the partitioner would gather rows in each step of the loops.
    spec = args[0].sharding.spec
    on = lambda *axes: jax.NamedSharding(mesh, jax.P(spec[0] if len(spec) else None, *axes))
    return mesh, solve_rows.fun, on(None), (on(None, None), on())

  solve_rows.def_partition(partition, sharding_rule='b i j, b -> b k')

  @jax.custom_batching.custom_vmap
  def solve(cost, sizes):
    return solve_rows(cost, sizes)

  @solve.def_vmap
  def solve_mapped(axis_size, mapped, cost, sizes):
    # A mapped axis makes a larger batch, so that loops are not mapped.
    whole = lambda x, m: x if m else jnp.broadcast_to(x[None], (axis_size, *x.shape))
    cost, sizes = whole(cost, mapped[0]), whole(sizes, mapped[1])
    A, B, T, _ = cost.shape
    return solve(cost.reshape(A * B, T, T), sizes.reshape(A * B)).reshape(A, B, T), True

  return jax.jit(solve)


def _columns(kind: str, cost_BTT, sizes_B):
  B, T, _ = cost_BTT.shape
  if 0 in (B, T):
    return jnp.zeros((B, T), jnp.int32)
  dtype = jnp.float64 if cost_BTT.dtype == jnp.float64 else jnp.float32
  return calls.KINDS[kind](cost_BTT.astype(dtype), jnp.clip(sizes_B, 0, T).astype(jnp.int32))
