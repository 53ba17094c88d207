"""Products with rows of large arrays, and writes into such rows, without a copy of the array.

Keys and values are [R, K, S, H]: R rows of S slots. Query b uses row `rows[b]`; with `rows` None it uses row b.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.attend import dot
from jaxlm.attention.attend import heads_first as heads_first
from jaxlm.caches.kivi import (
  FEW_TOGETHER,
  Quantized,
  dequantize,
  mix_codes,
  mix_quantized,
  score_codes,
  score_quantized,
)  # fmt: skip

UNROLLED = 32  # Up to this many rows, a program for a TPU writes them one after the other.


def score_rows(q_BKRH, keys, rows_B=None):
  """Returns float32 products [B, K, R, S] of queries with the keys of their rows. `keys` is an array or Quantized."""
  if not isinstance(keys, Quantized):
    one = lambda q, k: jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
    return _by_head(one, dot, q_BKRH, keys, rows_B)
  few = q_BKRH.shape[2] <= FEW_TOGETHER
  whole = score_codes if few else (lambda q, k: dot(q, dequantize(k, q.dtype)))
  return _by_head(score_quantized, whole, q_BKRH, keys, rows_B)


def mix_rows(w_BKRS, values, rows_B=None):
  """Returns weighted sums [B, K, R, H] of the values of the rows. `values` is an array or Quantized."""
  if not isinstance(values, Quantized):
    mix = lambda w, v: jnp.matmul(w.astype(v.dtype), v)
    return _by_head(mix, mix, w_BKRS, values, rows_B)
  few = w_BKRS.shape[2] <= FEW_TOGETHER
  exact = jnp.bfloat16 if values.scale.dtype == jnp.bfloat16 else jnp.float32
  whole = mix_codes if few else (lambda w, v: jnp.matmul(w.astype(exact), dequantize(v, exact)))
  return _by_head(mix_quantized, whole, w_BKRS, values, rows_B)


def _by_head(one, whole, x_BKRX, store, rows_B):
  """Applies `one` to one head at a time on a CPU, and `whole` to all heads at once on accelerators.

  A CPU copies rows that are taken from a pool or unpacked; the copy of a single head fits the CPU's caches.
  """
  B, K = x_BKRX.shape[:2]
  in_order = rows_B is None
  if in_order and not isinstance(store, Quantized):
    return whole(x_BKRX, store)
  rows_B = jnp.arange(B, dtype=jnp.int32) if in_order else rows_B.astype(jnp.int32)

  def apart(x_BKRX, store, rows_B):
    def head(i):
      row, k, zero = rows_B[i // K], i % K, np.int32(0)
      part = jax.tree.map(lambda s: jax.lax.dynamic_slice(s, (row, k, zero, zero), (1, 1, *s.shape[2:]))[0, 0], store)
      return one(x_BKRX.reshape(B * K, *x_BKRX.shape[2:])[i], part)

    out = jax.lax.map(head, jnp.arange(B * K, dtype=jnp.int32))
    return out.reshape(B, K, *out.shape[1:]).astype(jnp.float32)

  def together(x_BKRX, store, rows_B):
    store = store if in_order else jax.tree.map(lambda s: s[rows_B], store)
    return whole(x_BKRX, store).astype(jnp.float32)

  return jax.lax.platform_dependent(x_BKRX, store, rows_B, cpu=apart, default=together)


def write_rows(slots_RKSH, new_BKTH, start_B, rows_B=None, mask_B=None, axis: int = 2):
  """Returns the array with the new entries of row b written along `axis` from slot `start_B[b]` on, if `mask_B[b]` is true."""
  B = new_BKTH.shape[0]
  # With jax_enable_x64, Python numbers and arrays would be indices of different types.
  index = lambda x: np.int32(x) if isinstance(x, int) else x.astype(jnp.int32)
  at_slot = lambda row, start: tuple(map(index, (row, *(start if i == axis else 0 for i in range(1, 4)))))

  def together(slots_RKSH):
    def write(slots, new, start, mask=None):
      at = at_slot(0, start)[1:]
      if mask is not None:
        new = jnp.where(mask, new, jax.lax.dynamic_slice(slots, at, new.shape))
      return jax.lax.dynamic_update_slice(slots, new, at)

    args = (slots_RKSH, new_BKTH, start_B) if mask_B is None else (slots_RKSH, new_BKTH, start_B, mask_B)
    return jax.vmap(write)(*args)

  def one(i, slots):
    new = jax.lax.dynamic_index_in_dim(new_BKTH, i, keepdims=True)
    at = at_slot(i if rows_B is None else rows_B[i], start_B[i])
    if mask_B is not None:
      new = jnp.where(mask_B[i], new, jax.lax.dynamic_slice(slots, at, new.shape))
    return jax.lax.dynamic_update_slice(slots, new, at)

  if rows_B is not None:
    return one(0, slots_RKSH) if B == 1 else jax.lax.fori_loop(0, B, one, slots_RKSH)
  if B > UNROLLED:
    return together(slots_RKSH)
  if B > 1:
    # For a write to all rows together, and for one in a loop, a TPU's compiler lays the tokens of all rows side by side, which
    # copies the cache into a layout of twice its size.
    each = lambda slots: functools.reduce(lambda slots, i: one(i, slots), range(B), slots)
    return jax.lax.platform_dependent(slots_RKSH, tpu=each, default=together)
  # XLA's CPU backend fuses an update into the product that reads it, which copies the whole cache at every step. It does not
  # fuse through a conditional, so the update is inside one that is always true.
  apart = lambda slots: jax.lax.cond(start_B[0] >= 0, lambda slots: one(0, slots), lambda slots: slots, slots)
  return jax.lax.platform_dependent(slots_RKSH, cpu=apart, default=lambda slots: one(0, slots))
