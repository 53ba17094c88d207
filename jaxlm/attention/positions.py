"""Rotary position embedding (https://arxiv.org/abs/2104.09864), its scaling to longer contexts, and sinusoidal positions.

  rotate(x, p)_i = x_i cos(p f_i) - x_{i + R/2} sin(p f_i),   f_i = theta^(-2i / R),   R rotated dimensions of the head

in the half-split layout of Hugging Face checkpoints (GGUF stores the interleaved layout; jaxlm.io.gguf converts it).
Sinusoids are added to the embedding: x_t + [sin(t f), cos(t f)] (https://arxiv.org/abs/1706.03762).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxlm.config import ModelConfig, RopeConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


def rope_frequencies(config: ModelConfig, length: Int[Array, ' B'] | int) -> tuple[Float[Array, 'B R/2'], float]:
  """Returns (frequencies [R/2] or [B, R/2], float32 radians per token; factor on cos and sin).

  Only `dynamic` scaling uses `length`, the number of tokens of the whole sequence. A decoder passes its final length, so that
  keys cached early and late have the same frequencies. With the length of a plain forward pass, the formula is Hugging Face's.
  """
  rope, dim = config.rope, config.rotated_dim
  original = rope.original_length or config.max_length
  exponent = np.arange(0, dim, 2) / dim
  frequency = rope.theta**-exponent
  if rope.scaling == 'none':
    return jnp.asarray(frequency, jnp.float32), 1.0
  if rope.scaling == 'linear':
    return jnp.asarray(frequency / rope.factor, jnp.float32), 1.0
  if rope.scaling == 'dynamic':
    stretch = jnp.maximum(length / original, 1.0) * rope.factor - (rope.factor - 1)
    theta = rope.theta * stretch ** (dim / (dim - 2))
    theta = jnp.asarray(theta, jnp.float32)
    exponent = jnp.asarray(exponent, jnp.float32).reshape((1,) * theta.ndim + (-1,))
    return theta[..., None] ** -exponent, 1.0
  if rope.scaling == 'llama3':
    turns = original * frequency / (2 * math.pi)
    keep = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
    return jnp.asarray(keep * frequency + (1 - keep) * frequency / rope.factor, jnp.float32), 1.0
  # yarn, https://arxiv.org/abs/2309.00071. turning(beta): the dimension with `beta` rotations over the original length.
  turning = lambda beta: dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(rope.theta))
  low, high = turning(rope.beta_fast), turning(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  stretched = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
  frequency = stretched * frequency / rope.factor + (1 - stretched) * frequency
  factor = rope.attention_factor
  if factor is None:
    factor = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
  return jnp.asarray(frequency, jnp.float32), factor


def rope_tables(
  config: ModelConfig, positions: Int[Array, 'B T'], length
) -> tuple[Float[Array, 'B T R/2'], Float[Array, 'B T R/2']]:
  """Returns float32 cos and sin of the angles at each position, by `config.rope`."""
  frequency, factor = rope_frequencies(config, length)
  if frequency.ndim == 1:
    frequency = frequency[None]
  angle = positions.astype(jnp.float32)[..., None] * frequency[:, None, :]
  return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotations(config: ModelConfig, positions: Int[Array, 'B T'], length):
  """Returns what `rotation_of` picks each layer's cos and sin from; arguments as for `rope_tables`.

  That is (cos, sin) where all layers share them. With `local_rope_theta` it is two such pairs: that of layers without a
  window, and that of layers with one.
  """
  tables = rope_tables(config, positions, length)
  if config.local_rope_theta is None:
    return tables
  local = config.replace(rope=RopeConfig(theta=config.local_rope_theta, fraction=config.rope.fraction))
  return tables, rope_tables(local, positions, length)


def rotation_of(config: ModelConfig, tables, layer: int) -> tuple[Float[Array, 'B T R/2'], Float[Array, 'B T R/2']]:
  """Returns the cos and sin by which `layer` rotates; `tables` as `rotations` returns them, None for no rotation."""
  if config.local_rope_theta is None:
    return tables
  return tables[config.window(layer) is not None]


def rotate(
  x: Float[Array, 'B T N H'], cos: Float[Array, 'B T R/2'], sin: Float[Array, 'B T R/2']
) -> Float[Array, 'B T N H']:
  """Rotates the first R dimensions of every head; computed in float32, returned in the dtype of x."""
  half = cos.shape[-1]
  cos, sin = cos[:, :, None], sin[:, :, None]
  first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate([r.astype(x.dtype) for r in rotated] + [rest], axis=-1)


def sinusoids(positions: Int[Array, 'B T'], dim: int) -> Float[Array, 'B T D']:
  """Returns all sines, then all cosines, float32, as the attention-sink paper's code orders them (its text interleaves)."""
  frequency_F = jnp.asarray(10000.0 ** (-np.arange(0, dim, 2) / dim), jnp.float32)
  angle_BTF = positions.astype(jnp.float32)[:, :, None] * frequency_F[None, None]
  return jnp.concatenate([jnp.sin(angle_BTF), jnp.cos(angle_BTF)], axis=-1)[..., :dim]
