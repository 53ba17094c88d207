"""Dropout with an explicit key (https://jmlr.org/papers/v15/srivastava14a.html).

  y_i = m_i x_i / (1 - p),   m_i = 0 with probability p, else 1

so the expectation of y is x. The mask depends only on the key and the shape, so rematerialisation in the backward pass repeats it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Float


def dropped(x: Float[Array, '...'], rate: float, key: Array) -> Float[Array, '...']:
  """Returns x with each number set to 0 with probability `rate`, in x's dtype."""
  keep = jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))
