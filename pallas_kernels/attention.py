"""Softmax and sigmoid attention that never stores the [T, S] weights, forward and backward.

attention_kernels.py has the formulas for blocks of queries and keys, attention_streamed.py and attention_looped.py the Pallas
kernels of TPUs and GPUs, and attention_xla.py the same function in ordinary XLA operations. attention_slot.py adds the slot to
the result of any of them. For softmax on an NVIDIA GPU, cuDNN is called through JAX where it supports the arguments.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from pallas_kernels import attention_calls as calls
from pallas_kernels import attention_slot, platforms
from pallas_kernels.attention_checks import check, cudnn_cannot, cudnn_missing, hiding

if TYPE_CHECKING:
  from jax.experimental.pallas import tpu as pltpu
  from jaxtyping import Array, Float, Int

IMPLEMENTATIONS = ('pallas', 'xla', 'cudnn')


def flash_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  *,
  operation: str = 'softmax',
  causal: bool = True,
  window: int | None = None,
  prefix: int = 0,
  scale: float | None = None,
  softcap: float | None = None,
  bias: float = 0.0,
  alibi_slopes: Float[Array, ' N'] | Float[Array, 'B N'] | None = None,
  segments: Int[Array, 'B T'] | None = None,
  slot_logit: Float[Array, ' N'] | None = None,
  slot_key: Float[Array, 'K H'] | None = None,
  slot_value: Float[Array, 'K H'] | None = None,
  block_q: int | None = None,
  block_k: int | None = None,
  implementation: str | None = None,
  interpret: bool | str | pltpu.InterpretParams = False,
) -> Float[Array, 'B T N H']:
  """Returns sum_j w(s_ij) v_j in q's dtype, s_ij = cap(scale q_i . k_j) + bias - slope d_ij; masked weights are 0.

  Query i has the key position i + S - T, so the last query is at the last key; d_ij = i + S - T - j, or its absolute value if
  attention is not causal. Products accumulate in float32. The output of a query that sees no key is 0, for softmax too. The
  backward pass recomputes the weights: it keeps q, k and v (and alibi_slopes, segments and the slot's logits [B, N, T]), and for
  softmax also the output and its log-sum-exp.

  Args:
    q, k, v: of one dtype, float32, bfloat16 or float16; N is a multiple of K. Lengths and head dim may have any size.
    operation: 'softmax', or 'sigmoid' (https://arxiv.org/abs/2409.04431), whose bias is often -log(S).
    causal: hides keys after the query's position.
    window: number of keys that a query sees, its own position included: distances 0 .. window - 1, on both sides if not causal.
    prefix: number of first keys that every query sees, also outside its window and after its position (but see `segments`).
    scale: factor of the dot products (None: H ** -0.5).
    softcap: bound of the scaled products, cap(x) = softcap tanh(x / softcap) (https://arxiv.org/abs/2408.00118). None: no bound.
    bias, alibi_slopes: constants without gradients; bias is a Python number.
    segments: segment number of each position (T = S). A query sees only keys of its own segment, for rows of several documents;
      this holds for keys of the prefix too. All segments share a position with a negative number, such as a sink token before
      several documents: every query may see it, and it may see every key.
    slot_logit, slot_key, slot_value: a slot beside the keys, which every query sees, with gradients (the attention sink of
      https://arxiv.org/abs/2410.10781). Its logit is slot_logit as it is, or cap(scale q_i . slot_key) + bias, and its value
      slot_value (None: 0). For softmax it takes weight from the keys; for sigmoid it does not.
    block_q, block_k: block sizes of the kernels: powers of two, at least 16 (128 on a TPU). None: the platform's default. 'xla' and
      'cudnn' do not use them.
    implementation: 'pallas' (TPU, GPU), 'xla' (everywhere), 'cudnn' (NVIDIA GPU; softmax without ALiBi, segments, prefix,
      softcap or slot, 16 bits, T = S if causal). None chooses the fastest for the platform: see `default_implementation`.
      On NVIDIA GPUs before Ampere (compute capability 8.0) only 'xla' runs, and None chooses it.
    interpret: run kernels as ordinary JAX operations on any platform, whatever `implementation` says; slow, for tests. True: the
      kernels of a TPU; 'gpu': those of a GPU; `pltpu.InterpretParams`: those of a TPU in JAX's simulation of its memory.

  Raises:
    ValueError: arguments do not fit together, or `implementation` does not support them.
  """
  check(
    q, k, v, operation=operation, window=window, prefix=prefix, softcap=softcap, alibi_slopes=alibi_slopes,
    segments=segments, slot_logit=slot_logit, slot_key=slot_key, slot_value=slot_value, block_q=block_q, block_k=block_k,
  )  # fmt: skip
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f'{implementation=} is not one of {", ".join(IMPLEMENTATIONS)}, or None.')
  (B, T, N, H), S = q.shape, k.shape[1]
  spec = calls.Spec(
    operation=operation, causal=bool(causal), window=hiding(window, T, S), scale=H**-0.5 if scale is None else float(scale),
    bias=float(bias), alibi=alibi_slopes is not None, block_q=block_q, block_k=block_k, prefix=int(prefix),
    softcap=None if softcap is None else float(softcap), slot=slot_logit is not None or slot_key is not None,
  )  # fmt: skip
  if alibi_slopes is not None:
    alibi_slopes = jnp.asarray(alibi_slopes, jnp.float32)
    alibi_slopes = jnp.broadcast_to(alibi_slopes if alibi_slopes.ndim == 2 else alibi_slopes[None], (B, N))
  if segments is not None:
    segments = jnp.asarray(segments, jnp.int32)  # One type for the kernels: uint32 overflows in them.
  if interpret is not False:
    implementation = _interpreted(interpret)
  elif implementation == 'pallas':
    platforms.require(('tpu', 'gpu'), q, k, v)
  elif implementation is None:
    implementation = default_implementation(spec, q, k, segments)
    if implementation == 'cudnn':
      return _cudnn_on_nvidia(q, k, v, spec)
  elif implementation == 'cudnn':
    if reason := cudnn_cannot(spec, q, k, segments):
      raise ValueError(f"implementation='cudnn' does not support this call: {reason}. Leave it out, or pass 'xla'.")
    platforms.require(('gpu',), q, k, v, implementation='cudnn')
    if reason := cudnn_missing():
      raise ValueError(f"implementation='cudnn' does not run in this process: {reason} Leave it out, or pass 'xla'.")
    return _cudnn(q, k, v, spec)
  slot = (slot_logit, slot_key, slot_value) if spec.slot else None
  return _jitted(q, k, v, alibi_slopes, segments, spec, implementation, slot)


def default_implementation(spec: calls.Spec, q: jax.Array, k: jax.Array, segments=None) -> str | None:
  """Returns how a call without an implementation runs in a process with these GPUs.

  'cudnn': cuDNN in programs for an NVIDIA GPU, and attention_calls.FASTEST in programs for other devices, such as the CPU.
  None: FASTEST, also if cuDNN is missing or does not support the arguments. 'xla': on GPUs that are too old for cuDNN and the kernels.
  """
  gpus = platforms.gpus()
  if platforms.too_old(gpus):
    return 'xla'
  nvidia = bool(gpus) and gpus[0].device_kind.startswith('NVIDIA')
  return 'cudnn' if nvidia and not (cudnn_cannot(spec, q, k, segments) or cudnn_missing()) else None


def chosen_implementation(spec: calls.Spec, q: jax.Array, k: jax.Array, segments=None) -> str:
  """Returns the implementation that a call without one uses on this process's default device; q and k may be abstract."""
  platform = platforms.default_platform()
  if platform == 'gpu' and (default := default_implementation(spec, q, k, segments)):
    return default
  return 'xla' if calls.FASTEST[{'gpu': 'cuda'}.get(platform, platform)] == 'xla' else 'pallas'


def _interpreted(interpret) -> calls.Form:
  if isinstance(interpret, str) and interpret != 'gpu':
    raise ValueError(f"{interpret=} must be True for a TPU's kernels, 'gpu' for a GPU's, or pltpu.InterpretParams.")
  return calls.Form('gpu', interpret=True) if interpret == 'gpu' else calls.Form('tpu', interpret=interpret)


def _cudnn(q, k, v, spec: calls.Spec):
  # A constant added to all logits does not change a softmax, so spec.bias is left out.
  window = None if spec.window is None else (spec.window - 1, 0)
  return jax.nn.dot_product_attention(
    q, k, v, scale=spec.scale, is_causal=spec.causal, local_window_size=window, implementation='cudnn'
  )


@functools.partial(jax.jit, static_argnums=3)
def _cudnn_on_nvidia(q, k, v, spec: calls.Spec):
  """Returns the attention by cuDNN in a program for an NVIDIA GPU, and by attention_calls.FASTEST elsewhere.

  The choice is made when the program is lowered, because a process with GPUs also has programs for its CPU.
  """
  ours = lambda form, q, k, v: _attend(q, k, v, None, None, None, None, spec, form)
  branches = {platform: functools.partial(ours, calls.Form(kind)) for platform, kind in calls.FASTEST.items()}
  branches['cuda'] = functools.partial(_cudnn, spec=spec)
  return jax.lax.platform_dependent(q, k, v, **branches)


def _with_slot(q, k, v, slopes, segments, spec: calls.Spec, how, slot=None):
  """Returns the attention of keys and slot. slot: (logit, key, value), each an array or None; or None."""
  if slot is None:
    return _attend(q, k, v, slopes, segments, None, None, spec, how)
  logit_N, key_KH, value_KH = slot
  slot_BNT = attention_slot.logits(spec, q, logit_N, key_KH)
  value_KH = None if value_KH is None else value_KH.astype(q.dtype)
  if spec.operation == 'softmax':
    return _attend(q, k, v, slopes, segments, slot_BNT, value_KH, spec, how)
  out = _attend(q, k, v, slopes, segments, None, None, spec, how)
  return out if value_KH is None else attention_slot.add_to_sigmoid(out, slot_BNT, value_KH)


_jitted = jax.jit(_with_slot, static_argnums=(5, 6))


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _attend(q, k, v, slopes, segments, slot, slot_value, spec: calls.Spec, how):
  return attend_forward(q, k, v, slopes, segments, slot, slot_value, spec, how)[0]


def attend_forward(q, k, v, slopes, segments, slot, slot_value, spec: calls.Spec, how):
  """Returns the output and the residuals of the backward pass: the inputs, and for softmax (out, lse).

  slot: for softmax, the logits of the slot [B, N, T], or None; slot_value [K, H] or None.
  """
  forward = functools.partial(calls.forward, spec)
  out, lse = calls.platform_dependent(forward, how, q, k, v, _slopes_or_zeros(slopes, q), segments)
  if slot is not None:
    out, lse = attention_slot.add_to_softmax(out, lse, slot, slot_value)
  return out, (q, k, v, slopes, segments, slot, slot_value, None if spec.operation == 'sigmoid' else (out, lse))


def attend_backward(spec: calls.Spec, how, residuals, dout):
  q, k, v, slopes, segments, slot, slot_value, normaliser = residuals
  stats, dslot, dslot_value = (), None, None
  if normaliser is not None:
    out, lse = normaliser
    stats = lse, jnp.einsum('BTNH,BTNH->BNT', dout.astype(jnp.float32), out.astype(jnp.float32))
  if slot is not None:
    dslot, dslot_value = attention_slot.softmax_gradients(slot, *stats, slot_value, dout)
  backward = functools.partial(calls.backward, spec)
  dq, dk, dv = calls.platform_dependent(backward, how, q, k, v, _slopes_or_zeros(slopes, q), segments, dout, stats)
  return dq, dk, dv, None, None, dslot, dslot_value


_attend.defvjp(attend_forward, attend_backward)


def _slopes_or_zeros(slopes, q):
  return jnp.zeros((q.shape[0], q.shape[2]), jnp.float32) if slopes is None else slopes
