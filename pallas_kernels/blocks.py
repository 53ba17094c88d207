"""Blocks of the attention kernels: their sizes, arrays that are padded to them, and which of them a range of positions reaches."""

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np


def size(wanted: int, length: int, *, compiled_for_tpu: bool) -> int:
  """Returns a block size: at most the padded sequence, at least 128 (lanes) on a TPU and 16 (Triton's products) elsewhere."""
  return max(128 if compiled_for_tpu else 16, min(wanted, 1 << (length - 1).bit_length()))


def by_head(x_BTNH, block: int, *, tpu: bool, compiled_for_tpu: bool):
  """Returns [B, N, T', H'], padded with zeros: T' is a multiple of `block`; H' one of 128 on a TPU, a power of two elsewhere.

  Args:
    tpu: whether the array is for a TPU's kernel, which may be interpreted.
    compiled_for_tpu: whether that kernel is compiled.
  """
  if tpu and x_BTNH.dtype == jnp.float16:
    x_BTNH = x_BTNH.astype(jnp.float32)  # Mosaic has no float16 loads.
  T, H = x_BTNH.shape[1], x_BTNH.shape[3]
  padded_H = -(-H // 128) * 128 if compiled_for_tpu else max(16, 1 << (H - 1).bit_length())
  return jnp.pad(x_BTNH.swapaxes(1, 2), ((0, 0), (0, 0), (0, -T % block), (0, padded_H - H)))


def within(first: jax.Array, span: int, before: int | None, after: int | None, block: int, count: int):
  """Returns (low, high): the blocks 0 .. count - 1 that overlap positions first - before .. first + span - 1 + after.

  before, after: None is without end.
  """
  index = lambda n: lax.div(jnp.maximum(n, 0), np.int32(block))
  low = 0 if before is None else index(first - before)
  high = count if after is None else jnp.minimum(index(first + span + after + block - 1), count)
  return low, high


def at(i, block: int):
  """Returns the slice of block i."""
  return pl.ds(pl.multiple_of(i * block, block), block)
