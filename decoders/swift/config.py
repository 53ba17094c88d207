"""Settings of SWIFT as plain data. This file does not import JAX, so that a command shows its help at once.

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
  """Which sub-layers are skipped, how the set is searched, and how much is drafted. Default numbers are those of the authors."""

  skip_ratio: float = 0.45
  """Share of the sub-layers (attention and MLP blocks) that drafting skips. The first and the last layer always run and do not
  count. Higher: drafting is cheaper, and fewer drafted tokens are accepted. Use 0.1 to 0.2 for small models."""
  ratio_of: Literal['count', 'bytes'] = 'count'
  """What skip_ratio is a share of: the number of sub-layers (count), or the bytes of their weights (bytes), which suits models
  whose attention and MLP differ much in size."""
  search: bool = True
  """Search for a better set to skip while generating. Off: draft with the set that is given or saved, or without one with the
  start set described under skip."""
  context_window: int = 32
  """Number of generated tokens on which each set is scored. More: scores have less noise and take longer. Requests that generate
  fewer tokens take no part in the search."""
  opt_interval: int = 1
  """Number of decoding rounds between two steps of the search. Raise it to spend less time on the search. With guard on, steps are
  always at least 8 rounds apart."""
  bayes_interval: int = 25
  """Number of scored sets after which the Gaussian process, which proposes promising sets, is fitted again. 0: no Gaussian process;
  sets are drawn at random or vary good ones."""
  max_opt_iter: int = 1000
  """Number of scored sets after which the search ends. Lower it for short streams of requests."""
  max_tolerance_iter: int = 300
  """Number of sets scored in a row without a better one after which the search ends."""
  max_score: float = 0.95
  """Matchness above which the search ends: the best set's share of correctly predicted tokens, in [0, 1], must exceed it with
  statistical confidence (with fidelity paper: in one window). 1: the search never ends for this reason."""
  candidates: int | None = None
  """Number of sets scored together in one pass of the model (none: 8, or 1 with fidelity paper). Lower it to save memory."""
  objective: Literal['matchness', 'speedup'] = 'matchness'
  """What the search maximises. matchness: the share of tokens that the model predicts without the skipped sub-layers. speedup: the
  speed-up expected from that share and from the bytes that the set skips; use it with ratio_of bytes."""
  compare: Literal['nearness', 'matchness'] = 'nearness'
  """Score by which sets are compared. matchness: the share of tokens predicted, as in the paper. nearness: a token that is not
  predicted counts too, by its probability divided by that of the likeliest token, so that fewer tokens are enough to compare
  sets."""
  fidelity: Literal['corrected', 'paper'] = 'corrected'
  """Which rules the search follows. corrected: sets are compared on the same, latest tokens, and a better set is confirmed on new
  tokens. paper: the rules of the authors' code, to repeat the paper. There the first set is never scored, the window is the first
  tokens of a request, and the highest score of any window wins. To draft and search from the first token on, also turn guard
  off."""
  max_draft: int = 25
  """Largest number of tokens drafted in a round. Lower it on a CPU, where verifying many tokens is slow."""
  threshold: float = 0.8
  """Drafting stops after a token whose probability is below this. Raise it if few drafted tokens are accepted."""
  adapt_threshold: bool = False
  """Change the threshold after each round by the share of drafted tokens that are accepted (Draft & Verify,
  https://arxiv.org/abs/2309.08168). Use it for texts of changing difficulty."""
  width_bounds: tuple[float, float, float] = (0.95, 0.8, 0.5)
  """Decreasing probabilities of a drafted token, which decide how many candidates are verified in its place: see greedy_widths."""
  greedy_widths: tuple[int, int, int, int] = (3, 5, 8, 10)
  """In greedy decoding: number of candidates verified in one place, the drafted token included. There is one number for drafted tokens
  above the first of width_bounds, one above the second, one above the third, and one below them. Use 1 1 1 1 on a CPU, where each
  candidate costs time."""
  sampling_widths: tuple[int, int, int, int] = (1, 3, 5, 10)
  """The same as greedy_widths, when tokens are sampled."""
  draft: Literal['cond', 'mask', 'static'] = 'cond'
  """How the program skips a sub-layer. cond: it branches around it. mask: it computes it and discards the result, which saves no
  time. static: the set is part of the program, which runs fastest but is compiled again for each set. Use static for a set that
  does not change."""
  static_when_found: bool = True
  """When the search has ended, compile a program for the set found, as with draft static. Off: save the time to compile."""
  guard: bool = True
  """Measure the speed of drafting and of plain decoding, use the faster one, and limit the time spent on the search and on trying
  slower ones. Off: always draft, for studies."""
  skip: SkipSet | None = None
  """Set to start from (none: every second layer, or evenly spread layers if skip_ratio is far from one half)."""
  sets: str | None = None
  """JSON file of skip sets. The set of this model and task is read from it at the start, and written to it when a search ends."""
  task: str = 'default'
  """Name of the kind of text; the file `sets` keeps one set per model and task. A set of one task rarely suits another."""

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
    """Number of sets that are scored together."""
    if self.candidates is not None:
      return self.candidates
    return 1 if self.fidelity == 'paper' else 8

  def widths(self, greedy: bool) -> tuple[int, ...]:
    """Numbers of candidates: one for probabilities above each of `width_bounds`, and one below them."""
    return self.greedy_widths if greedy else self.sampling_widths

  def replace(self, **changes) -> 'SwiftConfig':
    return dataclasses.replace(self, **changes)
