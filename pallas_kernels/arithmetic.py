"""Arithmetic that all kernels of attention and their XLA forms share: products that round alike everywhere, and the softcap."""

from jax import lax
import jax.numpy as jnp

HIDDEN = -1e30  # Finite, so that a row without visible keys does not compute inf - inf.


def dot(a, b, axis: int, a_axis: int = 1):
  """Returns the product of two matrices in float32: a's last axis, or `a_axis`, is contracted with b's `axis`."""
  a, b, precision = _alike(a, b)
  numbers = (((a_axis,), (axis,)), ((), ()))
  return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def einsum(equation: str, a, b):
  """Returns an einsum of two arrays in float32."""
  a, b, precision = _alike(a, b)
  return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)


def _alike(a, b):
  """Returns the arrays in one dtype, and the precision of their product."""
  dtype = jnp.promote_types(a.dtype, b.dtype)
  # Explicit, because by default a GPU rounds float32 to TF32 and a TPU to bfloat16, and because a global setting must not change
  # products of bfloat16.
  return a.astype(dtype), b.astype(dtype), lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def softcapped(x, softcap: float | None):
  """Returns (softcap tanh(x / softcap), tanh(x / softcap)); x and None without a softcap."""
  if softcap is None:
    return x, None
  capped = jnp.tanh(x * (1.0 / softcap))
  return softcap * capped, capped
