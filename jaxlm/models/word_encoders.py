"""Functions that represent each word of a text by a vector, for classification.

Region embedding (https://openreview.net/forum?id=BkSDMA36Z), radius r, context units U and word vectors E:

  word-context   h_t = max_j U[x_t]_j * E[x_{t+j}]            j = -r ... r; the centre has a unit for each of its neighbours
  context-word   h_t = max_j U[x_{t+j}]_j * E[x_t]            each neighbour has a unit for the centre

where * multiplies element by element; a unit may also have one number for all elements. Only positions with all their neighbours have a representation.

GRU, with the reset gate after the product, as in cuDNN, Flax and MXNet:

  r, z = sigmoid(W x + b + U h);   c = tanh(W x + b + r * (U h + d));   h' = (1 - z) * c + z * h

n-grams (fastText, https://arxiv.org/abs/1607.01759): an embedding of each word and of each hashed sequence of 2 ... N words.

Letters: B texts, L positions of words, P positions with a representation, R words of a region, D width of word vectors, K width of
representations.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

MERGES = {'max': jnp.maximum, 'sum': jnp.add}


def region_embedding(
  words: Float[Array, 'B L K'], units: Float[Array, 'B P R K'], merge: str = 'max'
) -> Float[Array, 'B P K']:
  """Returns word-context region embeddings of the positions r ... L - r - 1, where P = L - R + 1.

  Args:
    words: vectors E of all words.
    units: units U of the central words; K is 1 for units of one number.
    merge: 'max' or 'sum' of the products of a region.
  """
  P, R = units.shape[1:3]
  products = (units[:, :, j] * words[:, j : j + P] for j in range(R))
  return functools.reduce(MERGES[merge], products)


def context_word_embedding(
  words: Float[Array, 'B P K'], units: Float[Array, 'B L R K'], merge: str = 'max'
) -> Float[Array, 'B P K']:
  """Returns context-word region embeddings.

  Args:
    words: vectors E of the central words.
    units: units U of all words; unit j of a word is for centres that have it as their neighbour j.
    merge: 'max' or 'sum' of the products of a region.
  """
  P, R = words.shape[1], units.shape[2]
  products = (units[:, j : j + P, j] * words for j in range(R))
  return functools.reduce(MERGES[merge], products)


def gru(
  inputs: Float[Array, 'B L D'],
  input_kernel: Float[Array, 'D 3K'],
  input_bias: Float[Array, ' 3K'],
  state_kernel: Float[Array, 'K 3K'],
  state_bias: Float[Array, ' K'],
  mask: Bool[Array, 'B L'] | None = None,
) -> Float[Array, 'B L K']:
  """Returns the state after each position; gates are in the order reset, update, candidate.

  Args:
    mask: positions where it is false leave the state as it is; None: all positions are read.
  """
  K = state_kernel.shape[0]
  # The products with the inputs do not depend on the state, so that they are one matrix product over all positions.
  projected_BLJ = inputs @ input_kernel + input_bias.reshape(1, 1, -1)
  bias_1K = state_bias.reshape(1, K)

  def step(h_BK, position):
    x_BJ, real_B = position
    u_BJ = h_BK @ state_kernel
    r_BK, z_BK = jnp.split(jax.nn.sigmoid(x_BJ[:, : 2 * K] + u_BJ[:, : 2 * K]), 2, axis=1)
    c_BK = jnp.tanh(x_BJ[:, 2 * K :] + r_BK * (u_BJ[:, 2 * K :] + bias_1K))
    new_BK = (1 - z_BK) * c_BK + z_BK * h_BK
    h_BK = jnp.where(real_B[:, None], new_BK, h_BK)
    return h_BK, h_BK

  B, L = inputs.shape[:2]
  real_BL = jnp.ones((B, L), bool) if mask is None else mask
  start_BK = jnp.zeros((B, K), projected_BLJ.dtype)
  return jax.lax.scan(step, start_BK, (projected_BLJ.swapaxes(0, 1), real_BL.T))[1].swapaxes(0, 1)


def ngram_ids(tokens: Int[Array, 'B L'], mask: Bool[Array, 'B L'], longest: int, buckets: int):
  """Returns (ids of the hashed sequences of 2 ... `longest` words, whether all words of the sequence are real), both [B, P'].

  Sequences of n words begin at the positions 0 ... L - n; the shorter ones come first. Ids are within 0 ... buckets - 1.
  """
  ids, real = [], []
  hashed_BL, mask_BL = tokens.astype(jnp.uint32), mask
  for n in range(2, longest + 1):
    # FNV-style: multiply by an odd number, then mix in the next word. 32-bit products wrap around.
    hashed_BL = (hashed_BL[:, :-1] * jnp.uint32(116_049_371)) ^ tokens[:, n - 1 :].astype(jnp.uint32)
    mask_BL = mask_BL[:, :-1] & mask[:, n - 1 :]
    # The high bits of a product depend on all bits of its factors, the low bits do not.
    mixed_BL = (hashed_BL * jnp.uint32(0x9E37_79B1)) >> jnp.uint32(8)
    ids.append((mixed_BL % jnp.uint32(buckets)).astype(jnp.int32))
    real.append(mask_BL)
  return jnp.concatenate(ids, axis=1), jnp.concatenate(real, axis=1)
