"""The ids of the latest tokens, as the whole state of a decoder of Markov order k (https://arxiv.org/abs/2402.02084, section 4).

  p(y_n | y_<n, x) = f(y_{n-k} .. y_{n-1}, n, x)

A model whose prediction depends on k tokens and nothing older needs no keys and values: it reads the k tokens anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.caches import sizes

if TYPE_CHECKING:
  from jaxtyping import Array, Int

NONE = -1  # The id of a place without a token, before the first one.


@struct.dataclass
class RecentTokens:
  """The ids of the latest k tokens of each row, oldest first. The newest one is that of the last prediction."""

  ids: jax.Array  # [B, k] int32; NONE before the first token

  @classmethod
  def create(cls, batch: int, recent: int) -> 'RecentTokens':
    """Returns the state before the first token: `recent` places without a token in each of `batch` rows."""
    return cls(jnp.full((batch, recent), NONE, jnp.int32))

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    rows, recent = self.ids.shape
    return sizes.line(self, f'the latest {recent} ids of {rows} rows')

  def reordered(self, index: Int[Array, ' B']) -> 'RecentTokens':
    """Returns the state whose row b is the old row `index[b]`, for beam search."""
    return RecentTokens(self.ids[index])

  def extended(self, tokens: Int[Array, 'B T']) -> tuple[Int[Array, 'B T k'], 'RecentTokens']:
    """Returns (the k ids up to each new token, oldest first; the state after the last new token).

    Args:
      tokens: int32 ids that follow those of the state.
    """
    T, k = tokens.shape[1], self.ids.shape[1]
    ids = jnp.concatenate([self.ids, tokens.astype(jnp.int32)], axis=1)
    windows = ids[:, 1 + jnp.arange(T)[:, None] + jnp.arange(k)[None]]
    return windows, RecentTokens(ids[:, T:])
