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
  """Which sub-layers are skipped, how the set is searched, and how much is drafted. The default numbers are the authors'."""

  skip_ratio: float = 0.45
  """Share of the sub-layers (attention and MLP blocks) that a draft skips; the first and the last layer always run and do not
  count. Higher: cheaper drafts, of which fewer are accepted. Small models allow 0.1 to 0.2."""
  ratio_of: Literal['count', 'bytes'] = 'count'
  """What skip_ratio is a share of: the number of sub-layers (count), or the bytes of their weights (bytes), which suits models
  whose attention and MLP differ much in size."""
  search: bool = True
  """Search for a better set to skip while generating. Off: draft with the set that is given or saved, else with every second
  layer skipped."""
  context_window: int = 32
  """Number of generated tokens on which each set is scored. More: less noisy scores, but each takes longer, and requests shorter
  than this are not searched on."""
  opt_interval: int = 1
  """Rounds of decoding between two steps of the search. Raise it to spend less time on the search. With guard on, steps are at
  least 8 rounds apart in any case."""
  bayes_interval: int = 25
  """Number of scored sets after which the Gaussian process, which proposes promising sets, is fitted again. 0: no process, all
  sets are drawn at random."""
  max_opt_iter: int = 1000
  """The search ends once more than this number of sets was scored. Lower it for short streams of requests."""
  max_tolerance_iter: int = 300
  """The search ends once more than this number of sets in a row was scored without finding a better one."""
  max_score: float = 0.95
  """The search ends once the best set's matchness, its share of correctly predicted tokens in [0, 1], is above this beyond doubt
  (with fidelity paper: in one window). 1: the search never ends for this reason."""
  candidates: int | None = None
  """Number of sets scored together in one pass of the model (none: 8, or 1 with fidelity paper). Lower it where memory is
  short."""
  objective: Literal['matchness', 'speedup'] = 'matchness'
  """What the search maximises. matchness: the share of tokens that the skipped model predicts. speedup: the speed-up expected from
  that share and from the bytes that the set skips; use it with ratio_of bytes."""
  compare: Literal['nearness', 'matchness'] = 'nearness'
  """How well a set predicts tokens, as far as sets are compared. matchness: the share of tokens predicted, as in the paper. nearness:
  a token that is not predicted counts too, by its probability divided by that of the likeliest token, so that fewer tokens are
  enough to tell sets apart."""
  fidelity: Literal['corrected', 'paper'] = 'corrected'
  """Whose rules the search follows. corrected: sets are compared on the same, latest tokens, and a better one is confirmed on new
  tokens. paper: as the authors' code, to repeat the paper: the first set is never scored, the window is the first tokens of a
  request, and the highest score of any window wins; add guard off to draft and search from the first token on."""
  max_draft: int = 25
  """Largest number of tokens drafted in a round. Lower it on a CPU, where verifying many tokens is slow."""
  threshold: float = 0.8
  """Drafting stops after a token whose probability is below this. Raise it where few drafted tokens are accepted."""
  adapt_threshold: bool = False
  """Move the threshold from round to round with the share of drafted tokens that are accepted (Draft & Verify,
  https://arxiv.org/abs/2309.08168). For texts of changing difficulty."""
  width_bounds: tuple[float, float, float] = (0.95, 0.8, 0.5)
  """Falling probabilities of a drafted token, which decide how many candidates are verified at its place: see greedy_widths."""
  greedy_widths: tuple[int, int, int, int] = (3, 5, 8, 10)
  """In greedy decoding: number of candidates for a place, the drafted token included, where its probability is above the first,
  second and third of width_bounds, and below all. 1 1 1 1 on a CPU, where each candidate costs time."""
  sampling_widths: tuple[int, int, int, int] = (1, 3, 5, 10)
  """The same as greedy_widths, when tokens are sampled."""
  draft: Literal['cond', 'mask', 'static'] = 'cond'
  """How the program skips a sub-layer. cond: it branches around it. mask: it computes it and discards the result, which saves no
  time. static: the set is part of the program, which is fastest and is compiled again for each set: for a set that stays."""
  static_when_found: bool = True
  """When the search has ended, compile a program for the set found, as with draft static. Off: save the time to compile."""
  guard: bool = True
  """Measure which is fastest, drafting or plain decoding, use that, and limit the time spent on searching and trying. Off: always
  draft, for studies."""
  skip: SkipSet | None = None
  """Set to start from (none: every second layer, or where skip_ratio is far from a half, evenly spread layers of that share)."""
  sets: str | None = None
  """JSON file that keeps sets: this model's and task's is read at the start, and written when a search ends."""
  task: str = 'default'
  """Name of the kind of text, under which the file `sets` keeps this model's set. A set of one task rarely suits another."""

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
