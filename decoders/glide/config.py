"""Settings of decoding with a GliDe draft, as plain data. This file does not import JAX, so that a command shows its help at once."""

import dataclasses
import itertools

PAPER_BINS = (8, 8, 8, 6, 6, 6, 4, 4, 2, 2, 2)


@dataclasses.dataclass(frozen=True)
class GlideDecoding:
  """How many tokens a GliDe draft drafts in a round, and how many candidates are verified in place of each. The default numbers are
  those of the paper."""

  max_draft: int = 4
  """Largest number of tokens drafted in a round. Drafts are trained for blocks of as many tokens."""
  bins: tuple[int, ...] = PAPER_BINS
  """Confidence-aware expansion (CaPE): number of candidates verified in place of a drafted token, the token included. Number i is for a
  draft whose largest probability is in [i / 10, (i + 1) / 10), and number 10 for the probability 1. A single number is for all
  probabilities: 1 verifies the drafted tokens alone (GliDe without CaPE), which suits CPUs, where each candidate costs time."""
  threshold: float = 0.0
  """Drafting stops after a token whose probability is below this (0: never, as in the paper)."""
  guard: bool = True
  """Measure the speed of drafting and of plain decoding, use the faster one, and limit the time spent on trying the slower one. Off:
  always draft, for studies."""

  def __post_init__(self):
    if self.max_draft < 1:
      raise ValueError(f'{self.max_draft=} must be at least 1.')
    if not 0 <= self.threshold <= 1:
      raise ValueError(f'{self.threshold=} must be in [0, 1].')
    if len(self.bins) not in (1, 11):
      raise ValueError(
        f'bins={self.bins} has {len(self.bins)} numbers: expected 11, one for each tenth of probability and one for 1, or a single one.'
      )
    if min(self.bins) < 1 or any(a < b for a, b in itertools.pairwise(self.bins)):
      raise ValueError(f'bins={self.bins} must be at least 1, and must not rise: a surer draft needs fewer candidates.')

  def replace(self, **changes) -> 'GlideDecoding':
    return dataclasses.replace(self, **changes)
