"""The search of SWIFT's authors for the set to skip (https://arxiv.org/abs/2410.06916), to repeat the paper.

One set at a time is scored on the first tokens of a request. The start set is never scored. A set with a higher score replaces the
best one, although the two were scored on different tokens.
"""

import numpy as np

from decoders.swift.gaussian_process import GaussianProcess, ucb
from decoders.swift.search_base import SearchBase
from decoders.swift.sets import SkipSet, draw, pack

# The highest upper bound is searched among BOX random real vectors, as in the authors' library. Each of the ROUNDS after the first
# compares the best vector so far with VARIANTS of it, in which one coordinate is drawn anew.
BOX, VARIANTS, ROUNDS = 10_000, 512, 5


class PaperSearch(SearchBase):
  """The search of fidelity='paper'; see `SearchBase`."""

  scores_incumbent = False
  window = 'first'

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._best_score = 0.0
    # Vectors as proposed, before rounding, and the scores of their sets.
    self._registered: list[tuple[np.ndarray, float]] = []

  @property
  def best_score(self) -> float:
    """The score with which the best set was found; 0 before the first score."""
    return self._best_score

  @property
  def best_nearness(self) -> float:
    """The same as `best_score`, because the paper uses only matchness."""
    return self._best_score

  def _propose(self) -> list[SkipSet]:
    """Returns a set drawn at random; every bayes_interval sets, the set of the best real vector's largest coordinates."""
    interval, space = self.config.bayes_interval, (self._weights, self._budget)
    if not interval or (self.iterations + 1) % interval or not self._registered:
      vector = draw(self._rng, 1, *space)[0]
      self._proposed = vector.astype(float)
    else:
      self._proposed = self._most_promising()
      vector = pack(np.argsort(-self._proposed)[None], *space)[0]
    return [SkipSet.of(vector, self.num_layers)]

  def _most_promising(self) -> np.ndarray:
    """Returns the real vector [d] with the highest upper confidence bound among vectors drawn from the unit cube."""
    process, d = GaussianProcess().fit(*map(np.array, zip(*self._registered))), len(self._weights)
    pool = self._rng.random((BOX, d))
    for _ in range(ROUNDS):
      bounds = np.concatenate([ucb(*process.predict(part)) for part in np.array_split(pool, 10)])
      best = pool[np.argmax(bounds)]
      pool = np.repeat(best[None], VARIANTS, axis=0)
      pool[np.arange(1, VARIANTS), self._rng.integers(d, size=VARIANTS - 1)] = self._rng.random(VARIANTS - 1)
    return best

  def _compare(self, candidates, matchness, nearness) -> None:
    score = matchness[0]
    # The authors' code registers the real vector, although the score belongs to the rounded one.
    self._registered.append((self._proposed, score))
    if score > self._best_score:
      self.best, self._best_score, self.tolerance = candidates[0], score, 0
      if score > self.config.max_score:
        self.stopped = 'max_score'
