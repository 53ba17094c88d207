"""The base class of both searches for the set to skip: the budget, the start set, checks, counts, and the end of the search."""

import abc
from collections.abc import Sequence
import dataclasses
from typing import Literal

import numpy as np

from decoders.swift.config import SwiftConfig
from decoders.swift.sets import SkipSet, num_skippable, uniform


@dataclasses.dataclass(frozen=True)
class Step:
  """The scores that one call of `observe` got, and the best set after it."""

  iterations: int
  """Number of sets scored so far."""
  scores: tuple[float, ...]
  """Matchness of the sets proposed."""
  incumbent: float | None
  """Matchness, on the same tokens, of the set that was the best one before."""
  best: SkipSet
  best_score: float
  tolerance: int
  """Number of sets scored since the best one was found."""


class SearchBase(abc.ABC):
  """Proposes sets to score, and keeps the best one. Proposed sets skip int(d * skip_ratio) sub-layers, or that share of the bytes.

  Attributes:
    best: the best set so far, at first the start set.
    stopped: why the search ended: 'max_score', 'tolerance', 'max_iter', or None. A caller may set it to end the search.
    iterations: number of sets scored.
    tolerance: number of sets scored since the best one was found.
    history: one `Step` for each call of `observe`.

  Args:
    costs: [d] bytes of each sub-layer, as `SkipSet.vector` orders them; for ratio_of='bytes' and objective='speedup'.
    seed: seed for the sets drawn at random.
    start: the start set (None: config.skip, or without it `default_start`).
    fixed_cost: bytes that every draft step reads in addition: the first and the last layer, and the head.

  Raises:
    ValueError: a start set that the model cannot skip, costs that are missing or do not fit, a ratio that skips nothing.
  """

  scores_incumbent: bool
  """Whether `observe` compares candidates with the score of `best` on the same tokens."""
  window: Literal['first', 'latest']
  """The generated tokens of a request on which sets are scored."""

  def __init__(
    self,
    config: SwiftConfig,
    num_layers: int,
    costs: np.ndarray | None = None,
    seed: int = 1,
    start: SkipSet | None = None,
    *,
    fixed_cost: float = 0.0,
  ):
    d = num_skippable(num_layers)
    if costs is None and (config.ratio_of == 'bytes' or config.objective == 'speedup'):
      raise ValueError(f'costs are missing: {config.ratio_of=} and {config.objective=} need bytes of {d} sub-layers.')
    self.costs = np.ones(d) if costs is None else np.asarray(costs, float)
    if self.costs.shape != (d,) or not (np.isfinite(self.costs).all() and self.costs.min() > 0 and fixed_cost >= 0):
      raise ValueError(f'costs must be {d} positive numbers and fixed_cost not negative: {costs}, {fixed_cost}.')
    self.config, self.num_layers, self.fixed_cost = config, num_layers, fixed_cost
    if config.ratio_of == 'count':
      self._weights, self._budget = np.ones(d), int(d * config.skip_ratio)
    else:
      self._weights, self._budget = self.costs, self.costs.sum() * config.skip_ratio
    if self._weights.min() > self._budget:
      raise ValueError(f'skip_ratio={config.skip_ratio} of {num_layers} layers skips no sub-layer: raise it.')
    self.best = next((s for s in (start, config.skip) if s is not None), self.default_start())
    self.best.check(num_layers)
    self.stopped: Literal['max_score', 'tolerance', 'max_iter'] | None = None
    self.iterations = self.tolerance = 0
    self.history: list[Step] = []
    self._rng = np.random.default_rng(seed)
    self._position = 0  # position of the window's end in the tokens of all requests

  def default_start(self) -> SkipSet:
    """Returns the set to start from if none is given."""
    return uniform(self.num_layers)

  @property
  def active(self) -> bool:
    """Whether the search still runs."""
    return self.config.search and self.stopped is None

  @property
  @abc.abstractmethod
  def best_score(self) -> float:
    """Matchness of the best set; 0 before the first score."""

  @property
  @abc.abstractmethod
  def best_nearness(self) -> float:
    """Nearness of the best set, which also counts tokens that are among the likeliest few; 0 before the first score."""

  def cost(self, skip_set: SkipSet) -> float:
    """Returns the bytes that a draft step reads, divided by those of a full step."""
    return float(self._cost(skip_set.vector(self.num_layers)))

  def propose(self, position: int | None = None) -> list[SkipSet]:
    """Returns the sets to score next, `config.num_candidates` of them.

    Args:
      position: number of tokens generated over all requests up to the end of the window (None: the next disjoint window).

    Raises:
      RuntimeError: the search is over.
    """
    if not self.active:
      raise RuntimeError(f'The search is over ({self.stopped or "config.search is off"}): draft with `best`.')
    self._position = self._position + self.config.context_window if position is None else position
    return self._propose()

  def observe(
    self,
    candidates: list[SkipSet],
    scores: Sequence[float],
    incumbent: float | None = None,
    nearness: Sequence[float] | None = None,
  ) -> None:
    """Records the scores of the sets proposed last; may change `best` and end the search.

    Args:
      scores: matchness of each candidate, all on one window.
      incumbent: matchness of `best` on the same window; needed if `scores_incumbent`.
      nearness: nearness of each candidate and, if `scores_incumbent`, then of `best` (None: sets are compared by matchness).

    Raises:
      ValueError: a score that is missing, NaN or outside [0, 1].
    """
    scores = tuple(float(s) for s in scores)
    if len(scores) != len(candidates):
      raise ValueError(f'{len(candidates)} sets have {len(scores)} scores.')
    if incumbent is None and self.scores_incumbent:
      raise ValueError('incumbent is missing: the score of the best set on the same window.')
    matchness = (*scores, float(incumbent)) if self.scores_incumbent else scores
    nearness = matchness if nearness is None else tuple(float(s) for s in nearness)
    if len(nearness) != len(matchness):
      raise ValueError(f'{len(matchness)} sets were scored and have {len(nearness)} values of nearness.')
    if bad := [s for s in (*matchness, *nearness) if not 0 <= s <= 1]:
      raise ValueError(f'A score is {bad[0]}: it must be a share of tokens, in [0, 1].')
    self.iterations += len(scores)
    self.tolerance += len(scores)
    self._compare(candidates, matchness, nearness)
    if self.stopped is None and self.tolerance > self.config.max_tolerance_iter:
      self.stopped = 'tolerance'
    if self.stopped is None and self.iterations > self.config.max_opt_iter:
      self.stopped = 'max_iter'
    self.history.append(Step(self.iterations, scores, incumbent, self.best, self.best_score, self.tolerance))

  @abc.abstractmethod
  def _propose(self) -> list[SkipSet]:
    """Returns the sets to score next."""

  @abc.abstractmethod
  def _compare(self, candidates: list[SkipSet], matchness: Sequence[float], nearness: Sequence[float]) -> None:
    """Records the values of the candidates and, if `scores_incumbent`, then of the best set. May change `best`, which sets
    `tolerance` to 0, and may set `stopped` to 'max_score'."""

  def _cost(self, vectors):
    return 1 - vectors @ self.costs / (self.costs.sum() + self.fixed_cost)
