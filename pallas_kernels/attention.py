"""Softmax and sigmoid attention that never stores the [T, S] weights, forward and backward.

attention_kernels.py has the Pallas kernels, attention_calls.py calls them and pads their inputs, and attention_xla.py has the same
function in ordinary XLA operations. For softmax on an NVIDIA GPU, cuDNN is called through JAX where it supports the arguments.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from pallas_kernels import attention_calls as calls

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

OPERATIONS = ('softmax', 'sigmoid')
DTYPES = ('float32', 'bfloat16', 'float16')
IMPLEMENTATIONS = ('pallas', 'xla', 'cudnn')


def flash_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  *,
  operation: str = 'softmax',
  causal: bool = True,
  window: int | None = None,
  scale: float | None = None,
  bias: float = 0.0,
  alibi_slopes: Float[Array, ' N'] | Float[Array, 'B N'] | None = None,
  segments: Int[Array, 'B T'] | None = None,
  block_q: int | None = None,
  block_k: int | None = None,
  implementation: str | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """Returns sum_j w(s_ij) v_j in q's dtype, s_ij = scale q_i . k_j + bias - slope |i + S - T - j|; masked weights are 0.

  Query i has the key position i + S - T, so the last query is at the last key. Products accumulate in float32. The output of a
  query that sees no key is 0, for softmax too. The backward pass recomputes the weights: it keeps q, k and v (and alibi_slopes),
  and for softmax also the output and its log-sum-exp.

  Args:
    q, k, v: of one dtype, float32, bfloat16 or float16; N is a multiple of K. Lengths and head dim may have any size.
    operation: 'softmax', or 'sigmoid' (https://arxiv.org/abs/2409.04431), whose bias is often -log(S).
    causal: hides keys after the query's position.
    window: number of keys that a query sees, its own position included: distances 0 .. window - 1, on both sides if not causal.
    scale: factor of the dot products (None: H ** -0.5).
    bias, alibi_slopes: constants without gradients; bias is a Python number.
    segments: segment number of each position (T = S). A query sees only keys of its own segment, for rows of several documents.
    block_q, block_k: block sizes of the kernels: powers of two, at least 16 (128 on a TPU). None: the platform's default.
    implementation: 'pallas' (TPU, GPU), 'xla' (everywhere), 'cudnn' (NVIDIA GPU; softmax without ALiBi or segments, 16 bits, T = S
      if causal). None chooses the fastest for the platform: see `default_implementation`.
    interpret: run the kernels as ordinary JAX operations on any platform; slow, for tests.

  Raises:
    ValueError: arguments do not fit together, or `implementation` does not support them.
    NotImplementedError: 'pallas' on a CPU without `interpret`, when the program is compiled.
  """
  _check(q, k, v, operation, window, alibi_slopes, segments, block_q, block_k)
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f'{implementation=} is not one of {", ".join(IMPLEMENTATIONS)}, or None.')
  B, _, N, H = q.shape
  spec = calls.Spec(
    operation=operation, causal=bool(causal), window=window, scale=H**-0.5 if scale is None else float(scale),
    bias=float(bias), alibi=alibi_slopes is not None, block_q=block_q, block_k=block_k,
  )  # fmt: skip
  if alibi_slopes is not None:
    alibi_slopes = jnp.asarray(alibi_slopes, jnp.float32)
    alibi_slopes = jnp.broadcast_to(alibi_slopes if alibi_slopes.ndim == 2 else alibi_slopes[None], (B, N))
  if interpret:
    implementation = 'interpret'
  elif implementation is None:
    implementation = default_implementation(spec, q, k, segments)
  if implementation == 'cudnn':
    if reason := _cudnn_cannot(spec, q, k, segments):
      raise ValueError(f"implementation='cudnn' does not support this call: {reason}. Leave it out, or pass 'xla'.")
    return _cudnn(q, k, v, spec)
  return _jitted(q, k, v, alibi_slopes, segments, spec, implementation)


def default_implementation(spec: calls.Spec, q: jax.Array, k: jax.Array, segments=None) -> str | None:
  """Returns 'cudnn' on an NVIDIA GPU if cuDNN supports the arguments; otherwise None, which means attention_calls.FASTEST."""
  device = jax.devices()[0]
  nvidia = device.platform == 'gpu' and device.device_kind.startswith('NVIDIA')
  return 'cudnn' if nvidia and _cudnn_cannot(spec, q, k, segments) is None else None


def chosen_implementation(spec: calls.Spec, q: jax.Array, k: jax.Array, segments=None) -> str:
  """Returns the implementation that a call without one uses on this process's devices; q and k may be abstract."""
  platform = {'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend())
  kernels = 'xla' if calls.FASTEST[platform] == 'xla' else 'pallas'
  return default_implementation(spec, q, k, segments) or kernels


def _cudnn_cannot(spec: calls.Spec, q: jax.Array, k: jax.Array, segments) -> str | None:
  """Returns why cuDNN's flash attention does not support a call, or None if it does."""
  (T, H), S = (q.shape[1], q.shape[3]), k.shape[1]
  if spec.operation != 'softmax' or spec.alibi or segments is not None:
    return 'it is for softmax without ALiBi or segments'
  if q.dtype == jnp.float32:
    return 'it is for 16 bits, not float32'
  if H % 8 or H > 128:
    return f'the head size {H} is not a multiple of 8 up to 128'
  if spec.causal and T != S:
    return f'causal attention needs as many queries as keys, not {T} queries and {S} keys'
  if spec.window is not None and not spec.causal:
    return 'a window must be causal'
  return None


def _cudnn(q, k, v, spec: calls.Spec):
  # A constant added to all logits does not change a softmax, so spec.bias is left out.
  window = None if spec.window is None else (spec.window - 1, 0)
  return jax.nn.dot_product_attention(
    q, k, v, scale=spec.scale, is_causal=spec.causal, local_window_size=window, implementation='cudnn'
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, slopes, segments, spec: calls.Spec, how: str | None):
  return _forward(q, k, v, slopes, segments, spec, how)[0]


def _forward(q, k, v, slopes, segments, spec, how):
  forward = functools.partial(calls.forward, spec)
  return calls.platform_dependent(forward, how, q, k, v, _slopes_or_zeros(slopes, q), segments)


def attend_forward(q, k, v, slopes, segments, spec: calls.Spec, how: str | None):
  """Returns the output and the residuals of the backward pass: the inputs, and for softmax (out, lse)."""
  out, lse = _forward(q, k, v, slopes, segments, spec, how)
  return out, (q, k, v, slopes, segments, None if spec.operation == 'sigmoid' else (out, lse))


def attend_backward(spec: calls.Spec, how: str | None, residuals, dout):
  q, k, v, slopes, segments, normaliser = residuals
  stats = ()
  if normaliser is not None:
    out, lse = normaliser
    stats = lse, jnp.einsum('BTNH,BTNH->BNT', dout.astype(jnp.float32), out.astype(jnp.float32))
  backward = functools.partial(calls.backward, spec)
  dq, dk, dv = calls.platform_dependent(backward, how, q, k, v, _slopes_or_zeros(slopes, q), segments, dout, stats)
  return dq, dk, dv, None, None


_attend.defvjp(attend_forward, attend_backward)
_jitted = jax.jit(_attend, static_argnums=(5, 6))


def _slopes_or_zeros(slopes, q):
  return jnp.zeros((q.shape[0], q.shape[2]), jnp.float32) if slopes is None else slopes


def _check(q, k, v, operation, window, alibi_slopes, segments, block_q, block_k) -> None:
  if operation not in OPERATIONS:
    raise ValueError(f'{operation=} is not one of {", ".join(OPERATIONS)}.')
  shapes = f'q {q.shape}, k {k.shape}, v {v.shape}'
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
    raise ValueError(f'{shapes}: expected q [B, T, N, H] and k, v [B, S, K, H].')
  B, _, N, H = q.shape
  if k.shape[0] != B or k.shape[3] != H:
    raise ValueError(f'{shapes}: batch and head dim must agree.')
  if 0 in (*q.shape, *k.shape):
    raise ValueError(f'{shapes}: no dimension may be 0.')
  if N % k.shape[2]:
    raise ValueError(f'{shapes}: {N} query heads are not a multiple of {k.shape[2]} key heads.')
  if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
    raise ValueError(f'q {q.dtype}, k {k.dtype}, v {v.dtype}: expected one dtype of {", ".join(DTYPES)}.')
  if window is not None and window < 1:
    raise ValueError(f'{window=} must be at least 1: a query counts itself.')
  if alibi_slopes is not None and jnp.shape(alibi_slopes) not in ((N,), (B, N)):
    raise ValueError(f'alibi_slopes {jnp.shape(alibi_slopes)}: expected [{N}] or [{B}, {N}].')
  if segments is not None and (segments.shape != q.shape[:2] or q.shape[1] != k.shape[1]):
    raise ValueError(f'segments {segments.shape}: expected [{B}, {q.shape[1]}], and as many keys; {shapes}.')
  for name, block in (('block_q', block_q), ('block_k', block_k)):
    if block is not None and (block < 16 or block & (block - 1)):
      raise ValueError(f'{name}={block} must be a power of two, at least 16.')
