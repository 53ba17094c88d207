"""The search for the set of sub-layers to skip, as a state machine that lives as long as a stream of requests.

  while search.active:
    sets = search.propose(position)
    search.observe(sets, scores, incumbent=score_of(search.best))   # all on the same window of generated tokens

A score is the matchness of SWIFT (https://arxiv.org/abs/2410.06916): the share of a window's tokens that the model predicts
without these sub-layers. Scores are noisy (0.04 of deviation for 32 tokens at 0.95) and windows differ in difficulty, so the
highest of many scores belongs to a lucky set. Sets are therefore compared by their nearness, in which a token that is not
predicted counts by how nearly it was, and which tells more of a set in as many tokens; what is reported, and what ends the
search, is matchness. And a set takes the best one's place for two reasons together:
  1. the Gaussian process, which has seen the scores of similar sets too, expects more of it. Such sets are challengers;
  2. scored again, on windows that share no token with those that made it a challenger, it led the best set on average.
Sets are compared on the same windows only. With fidelity='paper' the first set is not scored, and any score above the best
of any window wins, as in the authors' code.
"""

import dataclasses
from typing import Literal

import numpy as np

from decoders.swift.config import SwiftConfig
from decoders.swift.gaussian_process import GaussianProcess, ucb
from decoders.swift.sets import SkipSet, draw, num_skippable, pack, spread, uniform, vary

# How three new sets in turn are proposed once the Gaussian process has scores; before that, every second one is drawn at random.
# Variants of good sets correct the process where it is wrongly certain.
KINDS = ('bayes', 'bayes', 'variant')
CHALLENGES = 0.25  # Share of the candidates that may be challengers; more leave too few new sets.
PARENTS = 8  # Sets of highest expected score, of which variants are made.
POOL = 256  # Sets drawn anew in each round of a climb to the highest upper bound, and how many of all go on.
CLIMBING = 32
ROUNDS = 6
REMEMBERED = 500  # Sets that the process knows, the latest: its time grows with the cube.
# The deviation of a 32-token score is between a tenth and all of that between sets. The authors' 0.01 is the least of these.
NOISE = (0.01, 0.1, 1.0)
# What sub-layers cost nearly adds up, so most of the kernel is linear: few scores tell of each one.
LENGTH_SCALES, LINEAR = (0.3, 1.0), (0.5, 0.95)
# The best set's nearness tells how difficult a window is. Only this share of it is subtracted from other sets' nearness, because
# it is as noisy as theirs.
DIFFICULTY = 0.5
SURE = 3.0  # Deviations by which a search is above max_score when it ends; many, as the tokens of a text depend on each other.
BOX = 10_000  # Real vectors among which the paper's mode chooses, as the authors' library does.


@dataclasses.dataclass(frozen=True)
class Step:
  """What `Search.observe` was told, and what it made of that."""

  iterations: int
  """Sets scored until then."""
  scores: tuple[float, ...]
  incumbent: float | None
  best: SkipSet
  best_score: float
  tolerance: int
  """Sets scored since the best one was found."""


MATCHNESS, NEARNESS = 0, 1  # of a pair, both of one set on one window or summed over windows
nothing = lambda: np.zeros(2)


@dataclasses.dataclass
class _Record:
  """What is known of a set."""

  vector: np.ndarray  # [d]
  total: float = 0.0  # of its nearness, less the difficulty of the windows
  count: int = 0
  due: int = 0  # Position from which a window shares no token with the last one counted.
  # Sums over windows that it was scored on as a challenger of the present best set.
  own: np.ndarray = dataclasses.field(default_factory=nothing)
  rival: np.ndarray = dataclasses.field(default_factory=nothing)
  windows: int = 0


def wilson_lower_bound(share: float, tokens: int) -> float:
  """Returns the lower end of Wilson's score interval for a share of so many tokens, SURE deviations to either side."""
  n, z = max(tokens, 1), SURE
  middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  return float((middle - half) / (1 + z**2 / n))


def predicted_speedup(matchness, cost, max_draft: int):
  """Returns the tokens per time of the best drafting length, in units of plain decoding.

    max over D in 0..max_draft of M / (1 + D c),   M = 1 + s + ... + s^D

  where a drafted token is accepted with probability s and verifying D + 1 tokens takes the time of one.

  Args:
    matchness: s in [0, 1], of any shape.
    cost: c, the time of a draft step in units of a full one, of the same shape or a scalar.
  """
  s, c = np.broadcast_arrays(np.asarray(matchness, float), np.asarray(cost, float))
  drafted = np.arange(max_draft + 1)
  tokens = np.cumsum(s[..., None] ** drafted, axis=-1)
  return (tokens / (1 + c[..., None] * drafted)).max(axis=-1)


class Search:
  """Proposes sets to score, and keeps the best. All sets proposed skip int(d ratio) sub-layers, or what bytes allow.

  Attributes:
    best: the set to draft with now; before anything is found, the start set.
    stopped: why the search ended: 'max_score', 'tolerance', 'max_iter', or None.
    iterations, tolerance, history: sets scored, the same since the best was found, and a `Step` of each `observe`.

  Args:
    costs: [d] bytes of each sub-layer, as `SkipSet.vector` orders them; for ratio_of='bytes' and objective='speedup'.
    seed: of the sets drawn at random.
    start: the start set (none: config.skip, or every second layer; where skip_ratio is far from a half, as many as it says).
    fixed_cost: bytes that every draft step reads too: the first and the last layer, and the head.

  Raises:
    ValueError: a start set that the model cannot skip, costs that are missing or do not fit, a ratio that skips nothing.
  """

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
    first = uniform(num_layers)  # The authors' code starts from it whatever the ratio is.
    too_many = self._weights @ first.vector(num_layers) - self._budget
    if config.fidelity == 'corrected' and abs(too_many) > self._weights.sum() / 8:
      first = SkipSet.of(spread(num_layers, self._weights, self._budget), num_layers)
    self.best = next((s for s in (start, config.skip) if s is not None), first)
    self.best.check(num_layers)
    self.stopped: Literal['max_score', 'tolerance', 'max_iter'] | None = None
    self.iterations = self.tolerance = 0
    self.history: list[Step] = []
    self._rng = np.random.default_rng(seed)
    self._position = self._best_due = 0
    self._best_total, self._best_windows, self._seen = nothing(), 0, nothing()
    self._records: dict[SkipSet, _Record] = {}  # latest scored last
    self._process: GaussianProcess | None = None
    self._updated_at = 0
    self._challengers: list[SkipSet] = []  # highest expected score first
    self._parents = self.best.vector(num_layers)[None]
    self._registered: list[tuple[np.ndarray, float]] = []  # the paper's mode: vectors as proposed, and scores

  @property
  def active(self) -> bool:
    """There is something to score."""
    return self.config.search and self.stopped is None

  @property
  def best_score(self) -> float:
    """Mean score of the best set over disjoint windows, in the paper's mode the one that made it so; 0 before any."""
    return float(self._best_total[MATCHNESS] / self._best_windows) if self._best_windows else 0.0

  @property
  def best_nearness(self) -> float:
    """The same of its nearness, which tells rather how often a token is among the likeliest few."""
    return float(self._best_total[NEARNESS] / self._best_windows) if self._best_windows else 0.0

  def cost(self, skip_set: SkipSet) -> float:
    """Returns the bytes that a draft step reads, in units of a full one."""
    return float(self._cost(skip_set.vector(self.num_layers)))

  def propose(self, position: int | None = None) -> list[SkipSet]:
    """Returns the sets to score next, `config.num_candidates` of them.

    Args:
      position: tokens generated over all requests up to the end of the window (none: the window is a new one).

    Raises:
      RuntimeError: the search is over.
    """
    if not self.active:
      raise RuntimeError(f'The search is over ({self.stopped or "config.search is off"}): draft with `best`.')
    self._position = self._position + self.config.context_window if position is None else position
    if self.config.fidelity == 'paper':
      return [SkipSet.of(self._propose_as_paper(), self.num_layers)]
    if self.iterations >= 10 and self.iterations - self._updated_at >= max(1, self.config.bayes_interval):
      self._update()
    n, i = self.config.num_candidates, self.iterations
    places = int((i + n) * CHALLENGES) - int(i * CHALLENGES)
    due = [s for s in self._challengers if self._records[s].due <= self._position][:places]
    return due + self._new(n - len(due))

  def observe(self, candidates: list[SkipSet], scores, incumbent: float | None = None, near=None) -> None:
    """Takes the scores of the sets proposed last; may change `best` and end the search.

    Args:
      scores: matchness of each candidate, all on one window.
      incumbent: the same of `best`, on the same window; the paper's mode does without.
      near: nearness of each candidate, and that of `best` after them; without, sets are compared by matchness.

    Raises:
      ValueError: a score that is missing, NaN or outside [0, 1].
    """
    scores, paper = tuple(float(s) for s in scores), self.config.fidelity == 'paper'
    if len(scores) != len(candidates):
      raise ValueError(f'{len(candidates)} sets have {len(scores)} scores.')
    if incumbent is None and not paper:
      raise ValueError('incumbent is missing: the score of the best set on the same window.')
    matched = (*scores, *([] if paper else [float(incumbent)]))
    near = matched if near is None else tuple(float(s) for s in near)
    if len(near) != len(matched):
      raise ValueError(f'{len(candidates)} sets and the best one have {len(near)} values of nearness.')
    if bad := [s for s in (*matched, *near) if not 0 <= s <= 1]:
      raise ValueError(f'A score is {bad[0]}: it must be a share of tokens, in [0, 1].')
    self.iterations += len(scores)
    self.tolerance += len(scores)
    if paper:
      self._observe_as_paper(candidates[0], scores[0])
    else:
      self._observe_paired(candidates, np.array([matched, near]).T)
    if self.stopped is None and self.tolerance > self.config.max_tolerance_iter:
      self.stopped = 'tolerance'
    if self.stopped is None and self.iterations > self.config.max_opt_iter:
      self.stopped = 'max_iter'
    self.history.append(Step(self.iterations, scores, incumbent, self.best, self.best_score, self.tolerance))

  def _observe_paired(self, candidates, pairs):
    """`pairs` of matchness and nearness are of the candidates and of the best set."""
    end, counts, incumbent = self._position + self.config.context_window, self._position >= self._best_due, pairs[-1]
    self._seen = self._seen + pairs.sum(axis=0)
    if counts:
      self._best_total, self._best_windows, self._best_due = self._best_total + incumbent, self._best_windows + 1, end
    usual = self._best_total[NEARNESS] / self._best_windows
    harder = DIFFICULTY * (incumbent[NEARNESS] - usual)
    if counts:
      self._register(self.best, incumbent[NEARNESS] - harder)
    leads = {}
    for skip_set, pair in zip(candidates, pairs):
      record = self._register(skip_set, pair[NEARNESS] - harder)
      if record.due > self._position:
        continue
      if skip_set in self._challengers:
        record.own, record.rival, record.windows = record.own + pair, record.rival + incumbent, record.windows + 1
        own, rival = record.own[NEARNESS] / record.windows, record.rival[NEARNESS] / record.windows
        leads[skip_set] = self._value(record.vector, own) - self._value(self.best.vector(self.num_layers), rival)
      record.due = end
    if leads and max(leads.values()) > 0:
      self._promote(max(leads, key=leads.get))
    # The mean of a few windows is too little to end on: 32 tokens of a set at 0.93 are above 0.95 every third time.
    tokens = self._best_windows * self.config.context_window
    if wilson_lower_bound(self.best_score, tokens) > self.config.max_score:
      self.stopped = 'max_score'

  def _register(self, skip_set, nearness) -> _Record:
    record = self._records.pop(skip_set, None) or _Record(skip_set.vector(self.num_layers))
    record.total, record.count = record.total + nearness, record.count + 1
    self._records[skip_set] = record
    return record

  def _promote(self, skip_set):
    record = self._records[skip_set]
    self._best_total, self._best_windows, self._best_due = record.own, record.windows, record.due
    self.best, self.tolerance = skip_set, 0
    self._challengers = self._challengers[: self._challengers.index(skip_set)]
    for record in self._records.values():
      record.own, record.rival, record.windows = nothing(), nothing(), 0

  def _update(self):
    """Fits the process to the sets scored, and ranks them by the score it expects."""
    self._records[self.best] = self._records.pop(self.best)  # the last, and so among the latest
    records = list(self._records.values())[-REMEMBERED:]
    vectors, counts = np.array([r.vector for r in records]), np.array([r.count for r in records])
    expected = np.array([r.total for r in records]) / counts
    if self.config.bayes_interval:
      self._process = GaussianProcess(NOISE, LENGTH_SCALES, LINEAR).fit(vectors, expected, counts)
      expected = self._process.mean(vectors)
    values = self._value(vectors, expected)
    ranked = np.argsort(-values, kind='stable')
    self._challengers = [SkipSet.of(vectors[i], self.num_layers) for i in ranked if values[i] > values[-1]]
    self._parents, self._updated_at = vectors[ranked[:PARENTS]], self.iterations

  def _new(self, count: int) -> list[SkipSet]:
    """Returns sets that were not scored yet, as far as there are any."""
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
    """Returns sets of high upper confidence bounds, the highest first, found by climbing from drawn and from good sets."""
    space = (self._weights, self._budget)
    pool = np.concatenate([draw(self._rng, POOL // 2, *space), self._parents])
    for _ in range(ROUNDS):
      pool = np.unique(np.concatenate([pool, vary(self._rng, POOL, pool, *space)]), axis=0)
      pool = pool[np.argsort(-self._value(pool, ucb(*self._process.predict(pool))), kind='stable')[:CLIMBING]]
    return pool

  def _cost(self, vectors):
    return 1 - vectors @ self.costs / (self.costs.sum() + self.fixed_cost)

  def _value(self, vectors, nearness):
    """Returns what sets are ranked by."""
    if self.config.objective == 'matchness':
      return nearness
    # The share of near tokens that are the likeliest ones, from all windows so far.
    matchness = nearness * self._seen[MATCHNESS] / max(self._seen[NEARNESS], 1e-9)
    return predicted_speedup(np.clip(matchness, 0, 1), self._cost(vectors), self.config.max_draft)

  def _propose_as_paper(self) -> np.ndarray:
    """Returns one drawn vector or, every bayes_interval sets, that of the largest coordinates of the best real vector."""
    interval, d = self.config.bayes_interval, len(self._weights)
    if not interval or (self.iterations + 1) % interval or not self._registered:
      vector = draw(self._rng, 1, self._weights, self._budget)[0]
      self._real = vector.astype(float)
      return vector
    process = GaussianProcess().fit(*map(np.array, zip(*self._registered)))
    pool = self._rng.random((BOX, d))
    for _ in range(5):  # the best of many, then single coordinates of it drawn anew
      bounds = np.concatenate([ucb(*process.predict(part)) for part in np.array_split(pool, 10)])
      self._real = pool[np.argmax(bounds)]
      pool = np.repeat(self._real[None], 512, axis=0)
      pool[np.arange(1, 512), self._rng.integers(d, size=511)] = self._rng.random(511)
    return pack(np.argsort(-self._real)[None], self._weights, self._budget)[0]

  def _observe_as_paper(self, skip_set, score):
    self._registered.append((self._real, score))  # not the set that was scored: the authors' code does so
    if score > self.best_score:
      self.best, self._best_total, self._best_windows, self.tolerance = skip_set, np.array([score, score]), 1, 0
      if score > self.config.max_score:
        self.stopped = 'max_score'
