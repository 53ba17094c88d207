"""Token-level reversal: what stands between BOS and EOS is read from its end (https://arxiv.org/abs/2410.09817).

  forward   BOS x1 x2 ... xN EOS
  reverse   BOS xN ... x2 x1 EOS

Both directions predict the same N + 1 targets from BOS on, so their losses compare. In a packed row each document is reversed
within itself; a part of a document that the row cuts off is reversed as it is, and lacks BOS, EOS or both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Bool, Int


def reverse(
  ids: Int[np.ndarray, '*B S'],
  segments: Int[np.ndarray, '*B S'],
  fixed: Bool[np.ndarray, '*B S'],
  which: Bool[np.ndarray, '*B S'] | bool = True,
) -> Int[np.ndarray, '*B S']:
  """Returns packed rows with the content of their documents reversed. Applied twice it gives back the rows.

  Args:
    ids: any values that belong to tokens.
    segments: equal within a document, and its own; 0 is padding, which stays.
    fixed: tokens that stay where they are: BOS, direction tokens and EOS. They may only stand at a document's ends.
    which: tokens of the documents to reverse, the same for all tokens of one; True for all.
  """
  return np.take_along_axis(ids, _index(segments, fixed, which), axis=-1)


def _index(segments, fixed, which):
  """Returns where each slot's token comes from: first + last - p, of the content's first and last slot; p if it stays."""
  S = segments.shape[-1]
  at_S = np.broadcast_to(np.arange(S), segments.shape)
  moves = (segments != 0) & ~fixed & which
  # A run of content begins where the slot before stays or is another document's, and ends alike.
  joined = moves[..., 1:] & moves[..., :-1] & (segments[..., 1:] == segments[..., :-1])
  edge = np.ones((*segments.shape[:-1], 1), bool)
  first = np.maximum.accumulate(np.where(np.concatenate([edge, ~joined], axis=-1), at_S, 0), axis=-1)
  ends = np.where(np.concatenate([~joined, edge], axis=-1), at_S, S - 1)
  last = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
  return np.where(moves, first + last - at_S, at_S)
