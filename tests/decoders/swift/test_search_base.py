"""What the corrected search and the paper's share, and that each proposes for a seed what it always has."""

import numpy as np
import pytest

from decoders.swift.config import SwiftConfig
from decoders.swift.search import Search
from decoders.swift.sets import SkipSet, uniform

ENDLESS = {'max_score': 1.0, 'max_tolerance_iter': 10_000}


@pytest.mark.parametrize('fidelity', ['corrected', 'paper'])
def test_proposed_sets_skip_as_many_as_they_should(fidelity):
  L, d = 9, 14
  search = Search(SwiftConfig(fidelity=fidelity, bayes_interval=5, **ENDLESS), L)
  rng, seen = np.random.default_rng(0), []
  for _ in range(40):
    sets = search.propose()
    assert len(sets) == search.config.num_candidates == len(set(sets))
    for skip_set in sets:
      skip_set.check(L)
      assert len(skip_set) == int(d * 0.45)
    seen += sets
    search.observe(sets, rng.random(len(sets)), 0.5)
  assert len(set(seen)) > len(seen) // 2


def test_best_set_is_the_start_until_another_is_found():
  start = SkipSet((2,), (3,))
  assert Search(SwiftConfig(), 8).best == uniform(8)
  assert Search(SwiftConfig(skip=start), 8).best == start
  search = Search(SwiftConfig(skip=start, search=False), 8, start=SkipSet())
  assert search.best == SkipSet() and not search.active and search.stopped is None
  with pytest.raises(RuntimeError, match='config.search is off'):
    search.propose()


@pytest.mark.parametrize(
  'config, kwargs, message',
  [
    (SwiftConfig(), {'start': SkipSet((7,))}, 'layer 7'),
    (SwiftConfig(ratio_of='bytes'), {}, 'costs are missing'),
    (SwiftConfig(objective='speedup'), {}, 'costs are missing'),
    (SwiftConfig(), {'costs': np.ones(5)}, 'costs must be 12 positive'),
    (SwiftConfig(skip_ratio=0.05), {}, 'skip_ratio=0.05 of 8 layers skips no sub-layer'),
  ],
)
def test_searches_without_sense_are_refused(config, kwargs, message):
  with pytest.raises(ValueError, match=message):
    Search(config, 8, **kwargs)


@pytest.mark.parametrize(
  'scores, incumbent, message',
  [
    ([float('nan')] * 8, 0.5, 'A score is nan'),
    ([1.1] * 8, 0.5, 'A score is 1.1'),
    ([0.5] * 8, -0.1, 'A score is -0.1'),
    ([0.5] * 7, 0.5, '8 sets have 7 scores'),
    ([0.5] * 8, None, 'incumbent is missing'),
    ([0.5] * 8, 0.5, 'A score is 2'),
    ([0.5] * 8, 0.5, 'values of nearness'),
  ],
)
def test_broken_scores_are_refused(scores, incumbent, message):
  search = Search(SwiftConfig(), 8)
  near = {'A score is 2': [0.5] * 8 + [2], 'values of nearness': [0.5] * 8}.get(message)
  with pytest.raises(ValueError, match=message):
    search.observe(search.propose(), scores, incumbent, near)
  assert search.iterations == 0 and search.history == []


# What earlier versions proposed, and the best set each time it changed; a set is the number of its vector's bits.
HISTORIES = {
  'corrected': (
    '549 209 649 113 228 533 267 149 401 60 674 184 674 928 688 708 674 912 673 432 928 480 420 417 418 864 449 804 '
    '864 736 45 960 864 163 816 801 720 464 834 424 848 706 680 240 705 610 594 538 898 624 166 368 898 897 396 450 '
    '898 774 900 786 840 712 788 904',
    [561, 674, 928],
    0.7954545454545454,
  ),
  'paper': (
    '549 649 706 297 293 706 360 418 78 312 356 356 105 408 657 562 153 657 210 45 120 456 596 657 582 556 332 538 '
    '833 356 771 163 449 897 771 356 277 45 210 394 71 706 519 928 135 278 801 928 561 519 404 649 408 408 773 720 '
    '579 664 232 928 389',
    [549, 706, 356],
    0.84375,
  ),
}


@pytest.mark.parametrize('fidelity', HISTORIES)
def test_the_same_seed_proposes_the_same_sets_as_ever(fidelity):
  config = SwiftConfig(fidelity=fidelity, bayes_interval=6, max_opt_iter=60, max_score=1.0)
  search = Search(config.replace(candidates=1 if fidelity == 'paper' else 4), 7, seed=3)
  rng, harm, proposed = np.random.default_rng(3), np.linspace(0.0, 0.3, 10), []
  while search.active:
    sets = search.propose()
    shares = np.exp(-(np.array([s.vector(7) for s in [*sets, search.best]]) @ harm))
    scores = rng.binomial(32, shares) / 32
    search.observe(sets, scores[:-1], scores[-1])
    proposed += sets
  number = lambda skip_set: int(skip_set.vector(7) @ (1 << np.arange(10)[::-1]))
  expected, best, score = HISTORIES[fidelity]
  assert [number(s) for s in proposed] == list(map(int, expected.split()))
  assert list(dict.fromkeys(number(step.best) for step in search.history)) == best
  assert search.best_score == score and search.stopped == 'max_iter'
