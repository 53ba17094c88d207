"""The search for the set of sub-layers to skip: a state machine that lasts for a stream of requests.

  search = Search(SwiftConfig(), num_layers)
  while search.active:
    sets = search.propose(position)
    search.observe(sets, scores, incumbent=score_of(search.best))   # all scored on the same window of generated tokens

A score is the matchness of SWIFT (https://arxiv.org/abs/2410.06916): the share of a window's tokens that the model predicts
without these sub-layers. Scores are noisy (for 32 tokens at 0.95 the standard deviation is 0.04) and windows differ in difficulty,
so the highest of many scores often belongs to a set that was lucky. The corrected search therefore compares sets by their
nearness: a token that is not predicted counts by its probability divided by that of the likeliest token. Nearness needs fewer
tokens to distinguish sets. Matchness is reported, and ends the search. A set replaces the best one if both hold:
  1. The Gaussian process, which is fitted to the scores of all sets, expects a higher score of it than of the best one. Such sets
     are challengers.
  2. It was scored again as a challenger, on windows that share no token with those that made it a challenger, and its average
     score was higher than that of the best set on the same windows.
The paper's rules are in `decoders.swift.paper_search`.
"""

import dataclasses

import numpy as np

from decoders.swift.config import SwiftConfig
from decoders.swift.gaussian_process import GaussianProcess, ucb
from decoders.swift.paper_search import PaperSearch
from decoders.swift.search_base import SearchBase
from decoders.swift.sets import SkipSet, draw, spread, uniform, vary

# The kinds of new sets, in turn, once the Gaussian process is fitted; before that, random sets and variants take turns. Variants of
# good sets correct the process where it is wrong and certain.
KINDS = ('bayes', 'bayes', 'variant')
CHALLENGES = 0.25  # Largest share of challengers among the candidates; with more there would be too few new sets.
PARENTS = 8  # Number of sets with the highest expected scores, of which variants are made.
POOL = 256  # Number of new variants in each round of hill climbing to the highest upper bound.
CLIMBING = 32  # Number of sets with the highest upper bounds that reach the next round.
ROUNDS = 6  # Rounds of hill climbing.
REMEMBERED = 500  # Number of latest sets that the process is fitted to; its time grows with the cube of this number.
# Candidate noise variances. The standard deviation of a 32-token score is 0.1 to 1 times that between sets. The authors use 0.01.
NOISE = (0.01, 0.1, 1.0)
# The losses by single sub-layers nearly add up, so most of the kernel is linear. It then needs few scores for each sub-layer.
LENGTH_SCALES, LINEAR = (0.3, 1.0), (0.5, 0.95)
# The best set's nearness shows how difficult a window is. Only this share of the difference to its mean is subtracted from other
# sets' nearness, because it is as noisy as theirs.
DIFFICULTY = 0.5
SURE = 3.0  # Standard deviations above max_score that end the search; many, because tokens depend on each other.

MATCHNESS, NEARNESS = 0, 1  # Indices of a pair [2]: values of one set on one window, or sums of them over windows.
no_sum = lambda: np.zeros(2)


@dataclasses.dataclass
class _Record:
  """Scores of a set."""

  vector: np.ndarray  # [d] bool
  nearness_sum: float = 0.0  # over all windows, minus their difficulty
  count: int = 0  # number of windows in that sum
  fresh_from: int = 0  # Windows from this position on share no token with the last one that counted.
  # Pairs summed over the windows on which the set was a challenger of the present best set.
  challenger_sum: np.ndarray = dataclasses.field(default_factory=no_sum)
  incumbent_sum: np.ndarray = dataclasses.field(default_factory=no_sum)
  challenges: int = 0  # number of windows in these sums


def wilson_lower_bound(share: float, tokens: int) -> float:
  """Returns the lower end of Wilson's score interval, of SURE standard deviations each side, for a share of `tokens` tokens."""
  n, z = max(tokens, 1), SURE
  middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  return float((middle - half) / (1 + z**2 / n))


def predicted_speedup(matchness, cost, max_draft: int):
  """Returns the expected speed-up over plain decoding with the best draft length.

    max over D in 0..max_draft of M / (1 + D c),   M = 1 + s + ... + s^D

  A drafted token is accepted with probability s; verifying D + 1 tokens is taken to cost as much as one.

  Args:
    matchness: s in [0, 1], of any shape.
    cost: c, the time of a draft step divided by that of a full step; same shape or a scalar.
  """
  s, c = np.broadcast_arrays(np.asarray(matchness, float), np.asarray(cost, float))
  drafted = np.arange(max_draft + 1)
  tokens = np.cumsum(s[..., None] ** drafted, axis=-1)
  return (tokens / (1 + c[..., None] * drafted)).max(axis=-1)


def Search(
  config: SwiftConfig,
  num_layers: int,
  costs: np.ndarray | None = None,
  seed: int = 1,
  start: SkipSet | None = None,
  *,
  fixed_cost: float = 0.0,
) -> SearchBase:
  """Returns the search of `config.fidelity`. For arguments, attributes and errors see `SearchBase`."""
  kind = PaperSearch if config.fidelity == 'paper' else CorrectedSearch
  return kind(config, num_layers, costs, seed, start, fixed_cost=fixed_cost)


class CorrectedSearch(SearchBase):
  """The search of fidelity='corrected'; see the module's docstring, and `SearchBase`."""

  scores_incumbent = True
  window = 'latest'

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    # Sum of the best set's pairs over windows that share no token.
    self._best_total, self._best_windows, self._best_fresh_from = no_sum(), 0, 0
    self._all_sets_total = no_sum()
    self._records: dict[SkipSet, _Record] = {}  # latest scored last
    self._process: GaussianProcess | None = None
    self._updated_at = 0  # `iterations` when the process was fitted last
    self._challengers: list[SkipSet] = []  # highest expected score first
    self._parents = self.best.vector(self.num_layers)[None]

  def default_start(self) -> SkipSet:
    """Returns the authors' start set, or sub-layers of evenly spread layers if the authors' set is far from skip_ratio."""
    authors = uniform(self.num_layers)
    excess = self._weights @ authors.vector(self.num_layers) - self._budget
    if abs(excess) <= self._weights.sum() / 8:
      return authors
    return SkipSet.of(spread(self.num_layers, self._weights, self._budget), self.num_layers)

  @property
  def best_score(self) -> float:
    """Mean matchness of the best set over disjoint windows; 0 before the first score."""
    return float(self._best_total[MATCHNESS] / self._best_windows) if self._best_windows else 0.0

  @property
  def best_nearness(self) -> float:
    """Mean nearness of the best set over disjoint windows; 0 before the first score."""
    return float(self._best_total[NEARNESS] / self._best_windows) if self._best_windows else 0.0

  def _propose(self) -> list[SkipSet]:
    """Returns the challengers that a fresh window can score, up to their share, and new sets."""
    if self.iterations >= 10 and self.iterations - self._updated_at >= max(1, self.config.bayes_interval):
      self._update()
    n, i = self.config.num_candidates, self.iterations
    places = int((i + n) * CHALLENGES) - int(i * CHALLENGES)
    challenging = [s for s in self._challengers if self._records[s].fresh_from <= self._position][:places]
    return challenging + self._new(n - len(challenging))

  def _compare(self, candidates, matchness, nearness) -> None:
    *pairs, incumbent = np.array([matchness, nearness]).T
    self._all_sets_total = self._all_sets_total + np.sum([*pairs, incumbent], axis=0)
    end = self._position + self.config.context_window
    incumbent_counts = self._position >= self._best_fresh_from
    if incumbent_counts:
      self._best_total = self._best_total + incumbent
      self._best_windows, self._best_fresh_from = self._best_windows + 1, end
    usual = self._best_total[NEARNESS] / self._best_windows
    difficulty = DIFFICULTY * (incumbent[NEARNESS] - usual)
    if incumbent_counts:
      self._register(self.best, incumbent[NEARNESS] - difficulty)
    leads = {}
    for skip_set, pair in zip(candidates, pairs):
      record = self._register(skip_set, pair[NEARNESS] - difficulty)
      if record.fresh_from > self._position:
        continue
      if skip_set in self._challengers:
        leads[skip_set] = self._lead(record, pair, incumbent)
      record.fresh_from = end
    if leads and max(leads.values()) > 0:
      self._promote(max(leads, key=leads.get))
    # The mean of a few windows is too noisy to end on: a set of matchness 0.93 exceeds 0.95 on every third window of 32 tokens.
    tokens = self._best_windows * self.config.context_window
    if wilson_lower_bound(self.best_score, tokens) > self.config.max_score:
      self.stopped = 'max_score'

  def _register(self, skip_set, nearness) -> _Record:
    record = self._records.pop(skip_set, None) or _Record(skip_set.vector(self.num_layers))
    record.nearness_sum, record.count = record.nearness_sum + nearness, record.count + 1
    self._records[skip_set] = record
    return record

  def _lead(self, record, pair, incumbent) -> float:
    """Returns how much better a challenger is than the best set, over all windows on which both were compared."""
    record.challenger_sum, record.incumbent_sum = record.challenger_sum + pair, record.incumbent_sum + incumbent
    record.challenges += 1
    mean = lambda total: total[NEARNESS] / record.challenges
    best_vector = self.best.vector(self.num_layers)
    return self._value(record.vector, mean(record.challenger_sum)) - self._value(
      best_vector, mean(record.incumbent_sum)
    )

  def _promote(self, skip_set):
    """Makes a challenger the best set."""
    record = self._records[skip_set]
    self._best_total, self._best_windows = record.challenger_sum, record.challenges
    self._best_fresh_from = record.fresh_from
    self.best, self.tolerance = skip_set, 0
    self._challengers = self._challengers[: self._challengers.index(skip_set)]
    for record in self._records.values():
      record.challenger_sum, record.incumbent_sum, record.challenges = no_sum(), no_sum(), 0

  def _update(self):
    """Fits the process to the sets scored, and ranks them by the score it expects."""
    self._records[self.best] = self._records.pop(self.best)  # Moved to the end, so that it is among the latest.
    records = list(self._records.values())[-REMEMBERED:]
    vectors, counts = np.array([r.vector for r in records]), np.array([r.count for r in records])
    expected = np.array([r.nearness_sum for r in records]) / counts
    if self.config.bayes_interval:
      self._process = GaussianProcess(NOISE, LENGTH_SCALES, LINEAR).fit(vectors, expected, counts)
      expected = self._process.mean(vectors)
    values = self._value(vectors, expected)
    ranked = np.argsort(-values, kind='stable')
    self._challengers = [SkipSet.of(vectors[i], self.num_layers) for i in ranked if values[i] > values[-1]]
    self._parents, self._updated_at = vectors[ranked[:PARENTS]], self.iterations

  def _new(self, count: int) -> list[SkipSet]:
    """Returns `count` sets, not scored before as far as such sets are found."""
    space = (self._weights, self._budget)
    pools = {
      'random': lambda: draw(self._rng, 16 * count, *space),
      'variant': lambda: vary(self._rng, 16 * count, self._parents, *space),
      'bayes': self._promising,
    }
    known = KINDS if self._process is not None else ('random', 'variant')
    kinds = [known[(self.iterations + i) % len(known)] for i in range(count)]
    vectors = {kind: iter(pools[kind]()) for kind in dict.fromkeys(kinds)}
    new: list[SkipSet] = []
    for kind in kinds:
      for vector in vectors[kind]:
        skip_set = SkipSet.of(vector, self.num_layers)
        if skip_set not in self._records and skip_set not in new:
          break
      new.append(skip_set)
    return new

  def _promising(self) -> np.ndarray:
    """Returns sets with high upper confidence bounds, the highest first, by hill climbing from random sets and good sets."""
    space = (self._weights, self._budget)
    pool = np.concatenate([draw(self._rng, POOL // 2, *space), self._parents])
    for _ in range(ROUNDS):
      pool = np.unique(np.concatenate([pool, vary(self._rng, POOL, pool, *space)]), axis=0)
      pool = pool[np.argsort(-self._value(pool, ucb(*self._process.predict(pool))), kind='stable')[:CLIMBING]]
    return pool

  def _value(self, vectors, nearness):
    """Returns the value by which sets are ranked: nearness, or the speed-up predicted from it."""
    if self.config.objective == 'matchness':
      return nearness
    # Nearness is converted to matchness by the ratio of their sums over all sets and windows so far.
    matchness = nearness * self._all_sets_total[MATCHNESS] / max(self._all_sets_total[NEARNESS], 1e-9)
    return predicted_speedup(np.clip(matchness, 0, 1), self._cost(vectors), self.config.max_draft)
