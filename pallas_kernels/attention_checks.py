"""Checks of the arguments of `flash_attention` and `column_mass`: which values fit together, and what cuDNN supports."""

import functools

import jax
import jax.numpy as jnp

OPERATIONS = ('softmax', 'sigmoid')
DTYPES = ('float32', 'bfloat16', 'float16')


def check(
  q, k, v, *, operation, window, prefix, softcap, alibi_slopes, segments, slot_logit, slot_key, slot_value, block_q, block_k
) -> None:  # fmt: skip
  """Raises ValueError that names the first argument that does not fit the others."""
  check_logits(q, {'k': k, 'v': v}, operation, window, softcap, alibi_slopes, block_q, block_k)
  (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
  if not 0 <= prefix <= S:
    raise ValueError(f'{prefix=} must be within 0 .. {S}, the number of keys.')
  if segments is not None and (segments.shape != (B, T) or T != S):
    shapes = f'q {q.shape}, k {k.shape}'
    raise ValueError(f'segments {segments.shape}: expected [{B}, {T}], and as many keys; {shapes}.')
  if segments is not None and not jnp.issubdtype(segments.dtype, jnp.integer):
    raise ValueError(f'segments {segments.dtype}: expected integers, such as int32.')
  _check_slot(N, K, H, slot_logit, slot_key, slot_value)


def check_logits(q, stored, operation, window, softcap, alibi_slopes, block_q, block_k) -> None:
  """Raises ValueError that names what does not fit: `stored` are arrays [B, S, K, H] by name, the others arguments of a kernel."""
  if operation not in OPERATIONS:
    raise ValueError(f'{operation=} is not one of {", ".join(OPERATIONS)}.')
  _check_arrays(q, stored)
  B, _, N, _ = q.shape
  if window is not None and window < 1:
    raise ValueError(f'{window=} must be at least 1: a query counts itself.')
  if softcap is not None and not softcap > 0:
    raise ValueError(f'{softcap=} must be above 0; None leaves the logits as they are.')
  if alibi_slopes is not None and jnp.shape(alibi_slopes) not in ((N,), (B, N)):
    raise ValueError(f'alibi_slopes {jnp.shape(alibi_slopes)}: expected [{N}] or [{B}, {N}].')
  for name, block in (('block_q', block_q), ('block_k', block_k)):
    if block is not None and (block < 16 or block & (block - 1)):
      raise ValueError(f'{name}={block} must be a power of two, at least 16.')


def hiding(window: int | None, T: int, S: int) -> int | None:
  """Returns the window, or None for one that reaches every key: a large number would overflow int32 in sums with positions."""
  return None if window is None or window >= max(T, S) else int(window)


def _check_arrays(q, stored) -> None:
  arrays = {'q': q} | stored
  k, *others = stored.values()
  shapes = ', '.join(f'{name} {x.shape}' for name, x in arrays.items())
  if q.ndim != 4 or k.ndim != 4 or any(x.shape != k.shape for x in others):
    raise ValueError(f'{shapes}: expected q [B, T, N, H] and {", ".join(stored)} [B, S, K, H].')
  B, _, N, H = q.shape
  if k.shape[0] != B or k.shape[3] != H:
    raise ValueError(f'{shapes}: batch and head dim must agree.')
  if 0 in (*q.shape, *k.shape):
    raise ValueError(f'{shapes}: no dimension may be 0.')
  if N % k.shape[2]:
    raise ValueError(f'{shapes}: {N} query heads are not a multiple of {k.shape[2]} key heads.')
  if any(x.dtype != q.dtype for x in arrays.values()) or q.dtype.name not in DTYPES:
    dtypes = ', '.join(f'{name} {x.dtype}' for name, x in arrays.items())
    raise ValueError(f'{dtypes}: expected one dtype of {", ".join(DTYPES)}.')


def _check_slot(N: int, K: int, H: int, slot_logit, slot_key, slot_value) -> None:
  if slot_logit is not None and slot_key is not None:
    raise ValueError('slot_logit and slot_key each define the logit of the slot: pass one of them.')
  if slot_value is not None and slot_key is None:
    raise ValueError('slot_value needs slot_key, whose value it is.')
  expected = {'slot_logit': (slot_logit, (N,)), 'slot_key': (slot_key, (K, H)), 'slot_value': (slot_value, (K, H))}
  for name, (array, shape) in expected.items():
    if array is not None and jnp.shape(array) != shape:
      raise ValueError(f'{name} {jnp.shape(array)}: expected {list(shape)}.')


@functools.cache
def cudnn_missing() -> str | None:
  """Returns why this process cannot call cuDNN's flash attention at all, in JAX's words, or None if it can."""
  x = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
  try:
    jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation='cudnn'), x, x, x)
  except RuntimeError as error:
    return str(error)
  return None


def cudnn_cannot(spec, q: jax.Array, k: jax.Array, segments) -> str | None:
  """Returns why cuDNN's flash attention does not support a call, or None if it does."""
  (T, H), S = (q.shape[1], q.shape[3]), k.shape[1]
  if spec.operation != 'softmax' or spec.alibi or segments is not None:
    return 'it is for softmax without ALiBi or segments'
  if spec.prefix or spec.softcap is not None or spec.slot:
    return 'it has no prefix, softcap or slot'
  if q.dtype == jnp.float32:
    return 'it is for 16 bits, not float32'
  if H % 8 or H > 128:
    return f'the head size {H} is not a multiple of 8 up to 128'
  if spec.causal and T != S:
    return f'causal attention needs as many queries as keys, not {T} queries and {S} keys'
  if spec.window is not None and not spec.causal:
    return 'a window must be causal'
  return None
