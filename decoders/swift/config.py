"""Settings of SWIFT, as plain data: no JAX here, so that a command shows its help at once.

SWIFT (https://arxiv.org/abs/2410.06916) lets a model draft for itself by skipping sub-layers, and searches for the set to
skip while it generates.
"""

import dataclasses
import itertools
from typing import Literal

from decoders.swift.sets import SkipSet
from jaxlm.errors import unknown


@dataclasses.dataclass(frozen=True)
class SwiftConfig:
  """Which sub-layers are skipped, how the set is searched, and how much is drafted; the numbers are the authors'."""

  skip_ratio: float = 0.45
  """Share of the sub-layers that is skipped; the first and the last layer do not count, and always run."""
  ratio_of: Literal['count', 'bytes'] = 'count'
  """What skip_ratio is a share of: the number of sub-layers, or the bytes of their weights."""
  search: bool = True
  """Search while generating; without, draft with the set given or saved, else with every second layer left out."""
  context_window: int = 32
  """Generated tokens on which a set is scored."""
  opt_interval: int = 1
  """Rounds of decoding between two steps of the search; the guard looks up every 8 rounds or later."""
  bayes_interval: int = 25
  """Sets scored between two updates of the Gaussian process (0: none, sets are drawn at random)."""
  max_opt_iter: int = 1000
  """The search ends after more scored sets than this."""
  max_tolerance_iter: int = 300
  """The search ends after more scored sets than this without a better one."""
  max_score: float = 0.95
  """The search ends with a set that surely predicts a larger share of tokens than this (1: does not)."""
  candidates: int | None = None
  """Sets that are scored together in one pass (none: 8, or the paper's 1)."""
  objective: Literal['matchness', 'speedup'] = 'matchness'
  """What the best set has most of: tokens predicted, or speed-up as predicted from these and from the bytes it skips."""
  compare: Literal['nearness', 'matchness'] = 'nearness'
  """What sets are compared by, as far as they predict tokens. nearness: matchness, but a token that a set does not find likeliest
  counts by its probability in units of the likeliest one's, which tells sets apart in fewer tokens. matchness: as the paper."""
  fidelity: Literal['corrected', 'paper'] = 'corrected'
  """paper: as the authors' code, which does not score the first set, takes the first tokens of a request as its window, and
  keeps the highest score of any window; with guard=False it also drafts and searches from the first token on. corrected: sets are compared on the same, latest tokens, and confirmed on new ones."""
  max_draft: int = 25
  """Tokens drafted in a round at most."""
  threshold: float = 0.8
  """Drafting stops after a token less probable than this."""
  adapt_threshold: bool = False
  """Adapt the threshold to how many drafted tokens are accepted (Draft & Verify, https://arxiv.org/abs/2309.08168)."""
  width_bounds: tuple[float, float, float] = (0.95, 0.8, 0.5)
  """Probabilities of a drafted token above which fewer candidates are verified beside it, falling."""
  greedy_widths: tuple[int, int, int, int] = (3, 5, 8, 10)
  """Candidates above each of width_bounds, and below the last of them, in greedy decoding."""
  sampling_widths: tuple[int, int, int, int] = (1, 3, 5, 10)
  """The same in sampling."""
  draft: Literal['cond', 'mask', 'static'] = 'cond'
  """How a sub-layer is skipped. cond: by a branch. mask: computed and discarded. static: the set is part of the program,
  compiled for each."""
  static_when_found: bool = True
  """Compile a program for the set found when the search has ended."""
  guard: bool = True
  """Go on without drafting where it does not pay."""
  skip: SkipSet | None = None
  """Set to start from (none: every second layer; where skip_ratio is far from a half, as many as it says, evenly spread)."""
  sets: str | None = None
  """JSON file of sets found, read at the start and written when a search ends."""
  task: str = 'default'
  """Name under which the file keeps this model's set: sets of one task rarely suit another."""

  def __post_init__(self):
    if not 0 < self.skip_ratio < 1:
      raise ValueError(f'skip_ratio={self.skip_ratio} must be between 0 and 1.')
    for name in ('max_score', 'threshold'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)} must be in [0, 1].')
    for name, least in (
      ('context_window', 1),
      ('opt_interval', 1),
      ('bayes_interval', 0),
      ('max_opt_iter', 1),
      ('max_tolerance_iter', 1),
      ('candidates', 1),
      ('max_draft', 1),
    ):
      if (value := getattr(self, name)) is not None and value < least:
        raise ValueError(f'{name}={value} must be at least {least}.')
    for name, known in (
      ('ratio_of', ('count', 'bytes')),
      ('objective', ('matchness', 'speedup')),
      ('compare', ('nearness', 'matchness')),
      ('fidelity', ('corrected', 'paper')),
      ('draft', ('cond', 'mask', 'static')),
    ):
      if getattr(self, name) not in known:
        raise unknown(name, getattr(self, name), known)

    bounds = self.width_bounds
    if not all(0 <= b <= 1 for b in bounds) or any(a <= b for a, b in itertools.pairwise(bounds)):
      raise ValueError(f'width_bounds={bounds} must fall, and be in [0, 1].')
    for name in ('greedy_widths', 'sampling_widths'):
      widths = getattr(self, name)
      if len(widths) != len(bounds) + 1:
        raise ValueError(f'{name}={widths} must be one more than the {len(bounds)} width_bounds.')
      if min(widths) < 1 or any(a > b for a, b in itertools.pairwise(widths)):
        raise ValueError(f'{name}={widths} must be at least 1, and must not fall: less probable tokens need more.')
    if self.fidelity == 'paper':
      if self.num_candidates != 1:
        raise ValueError(f"fidelity='paper' scores one set at a time, not candidates={self.candidates}.")
      if self.objective != 'matchness':
        raise ValueError(f"fidelity='paper' ranks by matchness, not by objective={self.objective!r}.")
    if not self.task:
      raise ValueError('task must have a name.')

  @property
  def num_candidates(self) -> int:
    """Sets that are scored together."""
    if self.candidates is not None:
      return self.candidates
    return 1 if self.fidelity == 'paper' else 8

  def widths(self, greedy: bool) -> tuple[int, ...]:
    """Candidates above each of `width_bounds`, and below the last."""
    return self.greedy_widths if greedy else self.sampling_widths

  def replace(self, **changes) -> 'SwiftConfig':
    return dataclasses.replace(self, **changes)
