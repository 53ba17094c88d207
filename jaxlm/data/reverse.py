"""Token-level reversal: the content between BOS and EOS is read from its end (https://arxiv.org/abs/2410.09817).

  forward   BOS x1 x2 ... xN EOS
  reverse   BOS xN ... x2 x1 EOS

Both directions predict the same N + 1 targets, so their losses are comparable. In a packed row, each document is reversed within
its own slots. A row may contain only a part of a document, without BOS, EOS or both; this part is reversed alone.
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
  """Returns packed rows with the content of their documents reversed. Applied twice, it returns the original rows.

  Args:
    ids: token ids, or other values per token.
    segments: document number of each token; 0 is padding, which does not move.
    fixed: tokens that do not move: BOS, direction tokens and EOS. They may only be at the ends of a document.
    which: whether a token's document is reversed; True reverses all documents.
  """
  return np.take_along_axis(ids, _index(segments, fixed, which), axis=-1)


def _index(segments, fixed, which):
  """Returns the source slot of each slot p: first + last - p, with the first and last slot of its content; p if it is fixed."""
  S = segments.shape[-1]
  at_S = np.broadcast_to(np.arange(S), segments.shape)
  moves = (segments != 0) & ~fixed & which
  # A run of content ends at a slot that does not move and at the border of a document.
  joined = moves[..., 1:] & moves[..., :-1] & (segments[..., 1:] == segments[..., :-1])
  edge = np.ones((*segments.shape[:-1], 1), bool)
  first = np.maximum.accumulate(np.where(np.concatenate([edge, ~joined], axis=-1), at_S, 0), axis=-1)
  ends = np.where(np.concatenate([~joined, edge], axis=-1), at_S, S - 1)
  last = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
  return np.where(moves, first + last - at_S, at_S)
