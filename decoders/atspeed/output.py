"""What recommending returns."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Recommendations:
  """The best items after each history, and what happened. There are B histories, and at most k identifiers of L tokens for each."""

  items: list[list[int]]
  """The items of each history, best first. Items that share an identifier stand side by side, the most popular first, so there may be more
  than k; there are fewer if the trie has fewer."""
  item_scores: list[list[float]]
  """The score of each of these items, which is that of its identifier."""
  tokens: np.ndarray
  """[B, k, L] int32: the identifiers, best first; -1 where there are fewer than k."""
  scores: np.ndarray
  """[B, k] float32: sum of the log-probabilities of each identifier; -inf where there are fewer than k."""
  stats: dict[str, Any]
  """target_calls and accept_steps: lists with a number for each history; together they are the L steps of a search. draft_steps: steps of
  the draft, likewise. target_seconds (reading histories and verifying), draft_seconds, compile_seconds, seconds_per_history (of target and
  draft), histories."""

  def __repr__(self) -> str:
    n, k, _ = self.tokens.shape
    calls = f'{np.mean(self.stats["target_calls"]):.2f} target calls each' if n else ''
    return f'Recommendations({n} histories, k={k}, {calls}; first {self.items[0][:5] if n else []})'
