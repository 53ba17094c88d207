"""Removes tokens from rows of a fixed shape: repetitions, blanks, and ids that are no text.

A kept token moves to the place cumsum(keep) - 1 of its row. N rows, T positions; what is left over is filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Int


def compact(
  tokens: Int[Array, 'N T'], keep: Bool[Array, 'N T'], fill: int
) -> tuple[Int[Array, 'N T'], Int[Array, ' N']]:
  """Returns (the kept tokens of each row, moved to its beginning, number of them)."""
  N, T = tokens.shape
  place_NT = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, T)  # Writes to place T are dropped.
  moved_NT = jnp.full((N, T), fill, tokens.dtype).at[jnp.arange(N)[:, None], place_NT].set(tokens, mode='drop')
  return moved_NT, keep.sum(axis=1, dtype=jnp.int32)


def repeats(tokens: Int[Array, 'N T'], lengths: Int[Array, ' N']) -> Bool[Array, 'N T']:
  """Returns which of the first `lengths` tokens of each row are equal to the token before them."""
  same_NT = jnp.pad(tokens[:, 1:] == tokens[:, :-1], ((0, 0), (1, 0)))
  return same_NT & within(lengths, tokens.shape[1])


def within(lengths: Int[Array, ' N'], positions: int) -> Bool[Array, 'N T']:
  """Returns which of `positions` are before each row's length."""
  return jnp.arange(positions)[None] < lengths[:, None]


def without(
  tokens: Int[Array, 'N T'], lengths: Int[Array, ' N'], ids: tuple[int, ...], fill: int
) -> tuple[Int[Array, 'N T'], Int[Array, ' N']]:
  """Returns (tokens, lengths) without the tokens of `ids`, wherever they stand."""
  is_text_NT = ~jnp.isin(tokens, jnp.asarray(ids, tokens.dtype))
  return compact(tokens, within(lengths, tokens.shape[1]) & is_text_NT, fill)


def deduplicate(
  tokens: Int[Array, 'N T'], lengths: Int[Array, ' N'], fill: int
) -> tuple[Int[Array, 'N T'], Int[Array, ' N']]:
  """Returns (tokens, lengths) with one token for each run of equal tokens; a second call changes nothing."""
  return compact(tokens, within(lengths, tokens.shape[1]) & ~repeats(tokens, lengths), fill)


def collapse_ctc(
  tokens: Int[Array, 'N T'], lengths: Int[Array, ' N'], blank: int, fill: int
) -> tuple[Int[Array, 'N T'], Int[Array, ' N']]:
  """Returns (tokens, lengths) of CTC alignments: first runs of equal tokens become one token, then blanks are removed."""
  return without(*deduplicate(tokens, lengths, fill), (blank,), fill)
