"""Attention that each key receives, summed over queries, without storing the [T, S] weights.

  columns_s = sum_t f_t w_ts        proxy_s = sum_t f_t w_ts / (r_t + 1e-8)        r_t = sum_s w_ts

The weights are those of softmax or sigmoid attention, the factors f_t choose or weigh queries. The sums decide which keys are
attention sinks (https://arxiv.org/abs/2410.10781, whose proxy scores are the second sum) and which tokens a cache keeps (H2O,
https://arxiv.org/abs/2306.14048). column_mass_kernels.py has the Pallas kernels, column_mass_xla.py the same in XLA operations.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import column_mass_kernels as kernels
from pallas_kernels import column_mass_xla as xla
from pallas_kernels import platforms
from pallas_kernels.arithmetic import HIDDEN
from pallas_kernels.attention_checks import check_logits, hiding
from pallas_kernels.column_mass_kernels import Spec

if TYPE_CHECKING:
  from jaxtyping import Array, Float

IMPLEMENTATIONS = ('pallas', 'xla')
FASTEST = {'tpu': 'pallas', 'cuda': 'xla', 'rocm': 'xla', 'cpu': 'xla'}
"""Platform -> how a call without an `implementation` runs. On a GPU the kernels have not been run."""
EPS = 1e-8


class Mass(NamedTuple):
  """Sums of attention weights, float32. S' is S, or S + 1 with the slot at index 0."""

  columns: jax.Array  # [B, N, S']
  proxy: jax.Array  # [B, N, S']
  rows: jax.Array  # [B, N, T]: sum of each query's weights, slot included; 1 for softmax


def column_mass(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  *,
  operation: str = 'softmax',
  causal: bool = True,
  window: int | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  bias: float = 0.0,
  alibi_slopes: Float[Array, ' N'] | Float[Array, 'B N'] | None = None,
  slot_logits: Float[Array, 'B N T'] | None = None,
  factors: Float[Array, 'B T'] | None = None,
  block_q: int | None = None,
  block_k: int | None = None,
  implementation: str | None = None,
  interpret=False,
) -> Mass:
  """Returns the sums of the weights w(cap(scale q_i . k_j) + bias - slope |i + S - T - j|) of each key and of each query.

  Query i has the key position i + S - T, so the last query is at the last key. Masked weights are 0, and so is a query without
  visible keys. float32 products are not rounded; sums are in float32. The result has no gradients.

  Args:
    q, k: of one dtype, float32, bfloat16 or float16; N is a multiple of K. Lengths and head dim may have any size.
    operation: 'softmax' or 'sigmoid'.
    causal: hides keys after the query's position.
    window: number of keys that a query sees, its own position included: distances 0 .. window - 1, on both sides if not causal.
    scale: factor of the dot products (None: H ** -0.5).
    softcap: cap(x) = softcap tanh(x / softcap); None: x.
    bias, alibi_slopes: constants that are added after the cap; bias is a Python number.
    slot_logits: logits of a slot that every query sees, after scale, cap and bias. It takes part in a softmax.
    factors: f_t of `columns` and `proxy`, for example 0 for queries that do not count (None: 1). `rows` do not use them.
    block_q, block_k: block sizes of the kernels: powers of two, at least 16 (128 on a TPU). None: the platform's default. 'xla' does
      not use them.
    implementation: 'pallas' (TPU, GPU; NVIDIA's from Ampere on) or 'xla' (everywhere). None: FASTEST of the platform.
    interpret: run the kernels as ordinary JAX operations on any platform, whatever `implementation` says; slow, for tests. It may be
      a pltpu.InterpretParams.

  Raises:
    ValueError: arguments do not fit together, or the arrays are on a platform without the kernel.
  """
  check_logits(q, {'k': k}, operation, window, softcap, alibi_slopes, block_q, block_k)
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f'{implementation=} is not one of {", ".join(IMPLEMENTATIONS)}, or None.')
  (B, T, N, H), f32 = q.shape, jnp.float32
  for name, x, shape in (('slot_logits', slot_logits, (B, N, T)), ('factors', factors, (B, T))):
    if x is not None and jnp.shape(x) != shape:
      raise ValueError(f'{name} {jnp.shape(x)}: expected {list(shape)}.')
  spec = Spec(
    operation=operation, causal=bool(causal), window=hiding(window, T, k.shape[1]), scale=H**-0.5 if scale is None else float(scale),
    softcap=None if softcap is None else float(softcap), bias=float(bias), alibi=alibi_slopes is not None,
    block_q=block_q, block_k=block_k,
  )  # fmt: skip
  slopes = jnp.zeros((B, N), f32) if alibi_slopes is None else jnp.asarray(alibi_slopes, f32)
  slopes = jnp.broadcast_to(slopes if slopes.ndim == 2 else slopes[None], (B, N))
  factors = jnp.ones((B, T), f32) if factors is None else jnp.asarray(factors, f32)
  slot = None if slot_logits is None else jnp.asarray(slot_logits, f32)
  if implementation == 'pallas' and not interpret:
    platforms.require(('tpu', 'gpu'), q, k)
  arrays = jax.lax.stop_gradient((q, k, slopes, slot, factors))
  return _jitted(*arrays, spec, implementation, interpret)


@functools.partial(jax.jit, static_argnames=('spec', 'implementation', 'interpret'))
def _jitted(q, k, slopes, slot, factors, spec: Spec, implementation: str | None, interpret) -> Mass:
  call = functools.partial(_mass, spec)
  if interpret:
    return call(functools.partial(kernels.call, 'interpret', interpret=interpret), q, k, slopes, slot, factors)
  pallas = {
    platform: functools.partial(call, functools.partial(kernels.call, kind))
    for platform, kind in (('tpu', 'tpu'), ('cuda', 'gpu'), ('rocm', 'gpu'))
  }
  in_xla = functools.partial(call, xla.call)
  if implementation == 'xla':
    return in_xla(q, k, slopes, slot, factors)
  defaults = {platform: in_xla if how == 'xla' else pallas[platform] for platform, how in FASTEST.items()}
  refused = lambda *arrays: platforms.refused(in_xla(*arrays), kernels=('tpu', 'gpu'))
  branches = pallas | {'default': refused} if implementation == 'pallas' else defaults
  return jax.lax.platform_dependent(q, k, slopes, slot, factors, **branches)


def _mass(spec: Spec, call, q, k, slopes, slot_BNT, factors_BT) -> Mass:
  """Adds the slot to the sums over keys. `call` has the passes over the keys: see `column_mass_kernels.call`."""
  (B, T, N, _), softmax = q.shape, spec.operation == 'softmax'
  rows_pass, columns_pass = call(spec, q, k, slopes)
  total_BNT = rows_pass()  # Log-sum-exp of the keys, HIDDEN if there are none; for sigmoid, sum of the weights.
  factors_BNT = jnp.broadcast_to(factors_BT[:, None], (B, N, T))
  if softmax:
    lse_BNT = total_BNT if slot_BNT is None else jnp.logaddexp(total_BNT, slot_BNT)
    seen_BNT = lse_BNT > HIDDEN / 2
    rows_BNT = seen_BNT.astype(jnp.float32)
    slot_weights = None if slot_BNT is None else jnp.exp(slot_BNT - lse_BNT)
    (columns,) = columns_pass(lse_BNT, (factors_BNT,))
    weighted = (factors_BNT,)
    sums = (columns,)
  else:
    slot_weights = None if slot_BNT is None else jax.nn.sigmoid(slot_BNT)
    rows_BNT = total_BNT if slot_BNT is None else total_BNT + slot_weights
    weighted = (factors_BNT, factors_BNT / (rows_BNT + EPS))
    sums = columns_pass(None, weighted)
  if slot_weights is not None:
    received = [(f * slot_weights).sum(axis=-1, keepdims=True) for f in weighted]
    sums = [jnp.concatenate(pair, axis=-1) for pair in zip(received, sums)]
  # Rows of softmax sum to 1, so its proxy is the same number in float32.
  return Mass(sums[0], sums[-1], rows_BNT)
