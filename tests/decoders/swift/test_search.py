"""The search for the sub-layers to skip, and its settings."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from decoders.swift.config import SwiftConfig
from decoders.swift.search import Search, predicted_speedup, wilson_lower_bound
from decoders.swift.sets import draw, uniform, vary

ENDLESS = {'max_score': 1.0, 'max_tolerance_iter': 10_000}
PAPER = SwiftConfig(fidelity='paper')


def run(search, score, steps=10_000, span=None):
  """Scores with score(vectors [n, d]) -> [n] until the search ends; returns the best set's vector after each step."""
  best = []
  for step in range(steps):
    if not search.active:
      break
    sets = search.propose(None if span is None else 100 + span * step)
    scores = score(np.array([s.vector(search.num_layers) for s in [*sets, search.best]]))
    search.observe(sets, scores[:-1], scores[-1])
    best.append(search.best.vector(search.num_layers))
  return np.array(best)


def world(d, seed, window=None):
  """Returns score(vectors), the share exp(-sum of harms) of tokens, or its mean over a window of so many drawn at random.

  Half of the sub-layers do nothing, the others do harm.
  """
  rng = np.random.default_rng(seed)
  harm = np.where(rng.permutation(d) < d // 2, 0.0, 0.02 + rng.gamma(1.0, 0.1, d))
  exact = lambda vectors: np.exp(-(vectors @ harm))
  return exact if window is None else lambda vectors: rng.binomial(window, exact(vectors)) / window


@pytest.mark.parametrize(
  'bad, message',
  [
    ({'skip_ratio': 1.0}, 'skip_ratio=1.0 must be between'),
    ({'skip_ratio': 0.0}, 'must be between 0 and 1'),
    ({'max_score': 1.5}, 'max_score=1.5'),
    ({'threshold': float('nan')}, 'threshold=nan'),
    ({'context_window': 0}, 'context_window=0 must be at least 1'),
    ({'candidates': 0}, 'candidates=0'),
    ({'ratio_of': 'byte'}, "Did you mean 'bytes'"),
    ({'compare': 'nearnes'}, "Did you mean 'nearness'"),
    ({'width_bounds': (0.5, 0.8, 0.95)}, 'must fall'),
    ({'greedy_widths': (1, 2, 3)}, 'one more than the 3 width_bounds'),
    ({'sampling_widths': (10, 5, 3, 1)}, 'must not fall'),
    ({'fidelity': 'paper', 'candidates': 2}, 'scores one set at a time, not candidates=2'),
    ({'fidelity': 'paper', 'objective': 'speedup'}, 'ranks by matchness'),
    ({'task': ''}, 'task must have a name'),
  ],
)
def test_settings_without_sense_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    SwiftConfig(**bad)


def test_candidates_follow_the_fidelity():
  assert (SwiftConfig().num_candidates, PAPER.num_candidates, SwiftConfig(candidates=3).num_candidates) == (8, 1, 3)


def test_modules_need_no_jax():
  code = 'import sys, decoders.swift.search, decoders.swift.config; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_predicted_speedup_is_the_best_of_all_lengths():
  for s, c in itertools.product([0.0, 0.3, 0.9, 1.0], [0.1, 0.6, 1.0]):
    direct = max(sum(s**i for i in range(D + 1)) / (1 + D * c) for D in range(6))
    assert predicted_speedup(s, c, 5) == pytest.approx(direct)
  assert predicted_speedup(1.0, 0.5, 25) == pytest.approx(26 / 13.5) and predicted_speedup(0.4, 0.7, 25) == 1
  assert predicted_speedup(np.array([0.2, 0.9]), np.array([0.5, 0.5]), 25).shape == (2,)


def test_bytes_are_spent_to_the_last_sublayer_that_fits():
  L, costs = 8, np.array([2.0] * 6 + [5.0] * 6)
  search = Search(SwiftConfig(ratio_of='bytes', bayes_interval=5, **ENDLESS), L, costs)
  budget = 0.45 * costs.sum()
  for _ in range(12):
    sets = search.propose()
    for z in (s.vector(L) for s in sets):
      assert costs[z].sum() <= budget < costs[z].sum() + costs[~z].min()
    search.observe(sets, np.random.default_rng(0).random(len(sets)), 0.5)
  vectors = vary(np.random.default_rng(0), 50, draw(np.random.default_rng(1), 3, costs, budget), costs, budget)
  assert all(v @ costs <= budget < v @ costs + costs[~v].min() for v in vectors)


def test_small_spaces_do_not_block():
  search = Search(SwiftConfig(**ENDLESS), 4)
  run(search, lambda z: np.full(len(z), 0.5), steps=5)
  assert search.iterations == 40


def test_corrected_stops():
  search = Search(SwiftConfig(max_tolerance_iter=20), 8)
  run(search, lambda z: np.full(len(z), 0.5))
  assert (search.stopped, search.iterations, search.best) == ('tolerance', 24, uniform(8))
  search = Search(SwiftConfig(max_opt_iter=20), 8)
  run(search, lambda z: np.full(len(z), 0.5))
  assert (search.stopped, search.iterations, search.best_score) == ('max_iter', 24, 0.5)
  search = Search(SwiftConfig(), 8)
  # Every fourth window shares no token with the last that counted; of those without a miss it takes six.
  run(search, lambda z: np.full(len(z), 1.0), span=10)
  assert (search.stopped, len(search.history), search.best) == ('max_score', 1 + 4 * 5, uniform(8))


def test_a_search_does_not_end_on_luck():
  """The bound on a share is above the true one as rarely as three deviations are, and a lucky window does not reach it."""
  rng = np.random.default_rng(0)
  for true, tokens in ((0.5, 64), (0.9, 64), (0.93, 320)):
    shares = rng.binomial(tokens, true, 5000) / tokens
    assert np.mean([wilson_lower_bound(share, tokens) > true for share in shares]) < 0.006
    assert np.mean(shares > true) > 0.3  # The mean itself is.
  assert wilson_lower_bound(0.97, 100_000) > 0.968
  assert wilson_lower_bound(0.0, 0) == 0.0 and wilson_lower_bound(0.0, 10) == pytest.approx(0.0)


@pytest.mark.slow
def test_a_set_that_led_is_tested_on_tokens_of_its_own():
  """A lucky set scores higher on the tokens that found it only; windows move by 10 tokens."""
  search, lucky = Search(SwiftConfig(bayes_interval=8, **ENDLESS), 12), None
  challenged = []
  for position in range(100, 500, 10):
    sets = search.propose(position)
    scores = [0.5 if position == 100 and i == 0 else 0.1 for i in range(len(sets))]
    lucky = lucky or sets[0]
    if position > 100 and lucky in sets:
      challenged.append(position)
    search.observe(sets, scores, 0.3)
  assert search.best == uniform(12)
  assert challenged and challenged[0] >= 132 and all(b - a >= 32 for a, b in itertools.pairwise(challenged))


def test_sets_are_compared_by_nearness_and_judged_by_matchness():
  """All sets are met equally often; some are nearer."""
  search = Search(SwiftConfig(**ENDLESS | {'max_score': 0.9}), 12)
  nearness = lambda vectors: np.where(vectors[:, :5].any(axis=1), 0.7, 0.95)
  assert nearness(search.best.vector(12)[None]) == 0.7
  for _ in range(40):
    sets = search.propose()
    near = nearness(np.array([s.vector(12) for s in [*sets, search.best]]))
    search.observe(sets, [0.5] * len(sets), 0.5, near)
  assert nearness(search.best.vector(12)[None]) == 0.95 and search.best_score == 0.5 and search.active


@pytest.mark.slow
def test_nearness_tells_sets_apart_in_fewer_tokens():
  """Tokens that are missed narrowly: matchness counts them as missed, and its noise is that of a coin."""

  def found(seed, compare_by_nearness):
    rng, exact, search = np.random.default_rng(seed), world(56, seed), Search(SwiftConfig(**ENDLESS), 30)
    for _ in range(25):
      sets = search.propose()
      true = exact(np.array([s.vector(30) for s in [*sets, search.best]]))
      matched = rng.binomial(32, true) / 32
      near = np.clip(true + 0.4 * (matched - true), 0, 1)
      search.observe(sets, matched[:-1], matched[-1], near if compare_by_nearness else None)
    return float(exact(search.best.vector(30)[None])[0])

  by_nearness, by_matchness = (np.mean([found(seed, which) for seed in range(4)]) for which in (True, False))
  assert by_nearness > by_matchness + 0.05


def test_speedup_prefers_what_is_cheap_to_draft_with():
  """All sets predict equally well, so the one that skips most bytes is best."""
  costs = np.array([1.0] * 10 + [9.0] * 10)
  search = Search(SwiftConfig(objective='speedup', **ENDLESS), 12, costs, fixed_cost=20.0)
  run(search, lambda z: np.full(len(z), 0.8), steps=40)
  assert search.best.attention == () and len(search.best.mlp) == 9
  assert search.cost(search.best) == pytest.approx(1 - 81 / 120)


def test_search_finds_sublayers_that_do_nothing():
  """10 of 167960 sets do no harm; a search of sets drawn at random meets them less often."""
  config, found, drawn = SwiftConfig(max_opt_iter=200, **ENDLESS), [], []
  for seed in range(5):
    score = world(20, seed)
    found.append(score(run(Search(config, 12, seed=seed), score)[-1]))
    random = Search(config.replace(fidelity='paper', bayes_interval=0), 12, seed=seed)
    drawn.append(score(run(random, score)[-1]))
  assert found == [1.0] * 5
  assert np.mean(drawn) < 0.95


@pytest.mark.slow
def test_in_noise_the_corrected_rule_ends_with_a_better_set(monkeypatch):
  """The paper's rule keeps the luckiest window, whichever way its sets were found."""
  monkeypatch.setattr('decoders.swift.paper_search.BOX', 1000)
  ends = {}
  for name, config in (('corrected', SwiftConfig()), ('paper', PAPER), ('random', PAPER.replace(bayes_interval=0))):
    config = config.replace(max_opt_iter=300, **ENDLESS)
    runs = [run(Search(config, 20, seed=seed), world(36, seed, window=32)) for seed in range(5)]
    ends[name] = np.mean([world(36, seed)(best[-1]) for seed, best in enumerate(runs)])
  assert ends['corrected'] > ends['paper'] + 0.05, ends
  assert ends['corrected'] > ends['random'] + 0.1, ends


@pytest.mark.parametrize('ratio', [0.1, 0.25, 0.7, 0.85])
def test_a_search_starts_from_as_many_sub_layers_as_it_is_to_skip(ratio):
  search = Search(SwiftConfig(skip_ratio=ratio), 24)
  layers = sorted({*search.best.attention, *search.best.mlp})
  assert len(search.best) == int(44 * ratio)
  assert len(set(search.best.attention) ^ set(search.best.mlp)) <= 1  # Both sub-layers of each layer but one.
  steps = np.diff([0, *layers, 23])
  assert steps.max() <= 2 * max(1, 24 / (len(layers) + 1))  # Evenly spread.
  assert Search(SwiftConfig(skip_ratio=ratio, fidelity='paper'), 24).best == uniform(24)


@pytest.mark.parametrize('bayes_interval', [0, 25])
def test_a_space_of_few_sets_is_searched_too(bayes_interval):
  # 4 layers have six pairs of sub-layers; the start set is the worst.
  config = SwiftConfig(skip_ratio=0.5, max_opt_iter=100, max_tolerance_iter=100, bayes_interval=bayes_interval)
  search, rng = Search(config, 4), np.random.default_rng(0)
  worth = {skip_set: 0.1 for skip_set in [search.best]}
  while search.active:
    sets = search.propose()
    shares = [worth.setdefault(s, 0.2 + 0.12 * len(worth)) for s in [*sets, search.best]]
    scores = rng.binomial(32, shares) / 32
    search.observe(sets, scores[:-1].tolist(), scores[-1])
  assert len(worth) == 6 and search.best == max(worth, key=worth.get)
