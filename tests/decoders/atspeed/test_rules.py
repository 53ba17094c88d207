"""The rules of verification: the laws of what they keep. One program for each rule and shape, over all trials."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from decoders.atspeed import rules
from tests.models import slow

V, K, TRIALS = 12, 3, 20_000
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal(V)
P, Q = (np.exp(x) / np.exp(x).sum() for x in (LOGITS, LOGITS + 0.7 * RNG.standard_normal(V)))
CHOSEN = {
  'strict': lambda key, *a, **k: rules.strict(*a, **k),
  'relaxed': rules.relaxed,
  'relaxed_exact': rules.relaxed_exact,
}
LARGEST_ERROR = 1e-3  # p-value


@functools.partial(jax.jit, static_argnames=('rule', 'drafts', 'kept', 'replace', 'trials', 'by_score'))
def run(p, q, *, rule='relaxed_exact', drafts, kept=K, replace=False, trials=TRIALS, by_score=False):
  """Returns (places [trials, kept], whether each is filled, whether all were drafted), for drafts drawn from q."""

  def trial(key):
    draft_key, rule_key = jax.random.split(key)
    shape = (drafts, len(q)) if replace else (len(q),)
    noisy = jnp.log(q).reshape((1,) * (len(shape) - 1) + (-1,)) + jax.random.gumbel(draft_key, shape)
    place_N = jnp.argmax(noisy, axis=1) if replace else jax.lax.top_k(noisy, drafts)[1]
    log_q_N = jnp.log(q)[place_N]
    place_N = jnp.where(log_q_N > -jnp.inf, place_N, -1)
    rest = 1 - jnp.exp(log_q_N).sum()
    drafted = rules.Drafts(place_N.astype(jnp.int32), log_q_N, jnp.log(q), jnp.maximum(rest, 0))
    options = {'by_score': True} if by_score else {}
    return CHOSEN[rule](rule_key, jnp.log(p) - 7, drafted, kept=kept, **options)

  return jax.vmap(trial)(jax.random.split(jax.random.key(0), trials))


def law_of_draws(p: np.ndarray) -> np.ndarray:
  """Returns the law [V, V, V] of three draws without replacement, in order."""
  a, b, c = np.ix_(p, p, p)
  law = a * b / (1 - a) * c / np.maximum(1 - a - b, 1e-12)
  i, j, k = np.ogrid[: len(p), : len(p), : len(p)]
  return np.where((i == j) | (j == k) | (i == k), 0, law)


def fits(observed: np.ndarray, law: np.ndarray) -> float:
  """Returns the p-value of observed places having the law; rare outcomes count as one."""
  counts = np.bincount(np.ravel_multi_index(tuple(observed.T), law.shape), minlength=law.size)
  expected = law.ravel() * len(observed)
  rare = expected < 10
  if counts[expected == 0].any():
    return 0.0
  merge = lambda x: np.append(x[~rare], x[rare].sum() if expected[rare].any() else [])
  return stats.chisquare(merge(counts), merge(expected) * len(observed) / expected.sum()).pvalue


@pytest.mark.parametrize('drafts', [3, 10, *slow(6)])
@pytest.mark.parametrize('trials', [TRIALS, *slow(100_000)])
def test_the_exact_rule_keeps_draws_without_replacement_from_the_target(drafts, trials):
  places, there, drafted = (np.asarray(x) for x in run(P, Q, drafts=drafts, trials=trials))
  assert there.all() and 0.2 < drafted.mean() < 1
  assert fits(places, law_of_draws(P)) > LARGEST_ERROR
  assert (
    fits(places, law_of_draws(0.8 * P + 0.2 * Q)) < LARGEST_ERROR
  )  # The test finds a law that is a little different.


def test_the_relaxed_rule_does_not_keep_that_law_with_many_drafts():
  places, _, _ = (np.asarray(x) for x in run(P, Q, rule='relaxed', drafts=10))
  included = np.bincount(places.ravel(), minlength=V) / TRIALS
  marginal = law_of_draws(P)
  expected = sum(marginal.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
  assert np.abs(included - expected).max() > 0.05
  assert fits(places, marginal) < LARGEST_ERROR


@pytest.mark.parametrize('drafts', [4, *slow(1)])
def test_the_relaxed_rule_has_the_law_that_its_documentation_says(drafts):
  """With one slot, drawing with and without replacement is the same."""
  places, _, drafted = (np.asarray(x) for x in run(P, Q, rule='relaxed', drafts=drafts, kept=1, replace=True))
  least = np.minimum(P, Q)
  beta, residual = least.sum(), (P - least) / (P - least).sum()
  rho = 1 - (1 - beta) ** drafts
  law = rho * least / beta + (1 - rho) * residual
  assert fits(places, law) > LARGEST_ERROR and abs(drafted.mean() - rho) < 0.02
  error = np.abs(np.bincount(places[:, 0], minlength=V) / TRIALS - P).sum() / 2
  assert abs(error - (rho - beta) * np.abs(least / beta - residual).sum() / 2) < 0.01
  assert (fits(places, P) > LARGEST_ERROR) == (drafts == 1)  # exact for as many drafts as slots, and for no more


def test_relaxed_accepts_everything_if_the_draft_is_the_target_and_then_chooses_evenly():
  places, there, drafted = (np.asarray(x) for x in run(P, P, rule='relaxed', drafts=V))
  assert drafted.all() and there.all()
  assert stats.chisquare(np.bincount(places.ravel(), minlength=V)).pvalue > LARGEST_ERROR
  best, _, _ = (np.asarray(x) for x in run(P, P, rule='relaxed', drafts=V, by_score=True, trials=8))
  np.testing.assert_array_equal(best, np.broadcast_to(np.argsort(-P)[:K], best.shape))


@pytest.mark.parametrize('drafts', [3, 10])
def test_exact_accepts_every_draft_if_the_draft_is_the_target(drafts):
  places, _, drafted = (np.asarray(x) for x in run(P, P, drafts=drafts))
  assert drafted.all()
  assert fits(places, law_of_draws(P)) > LARGEST_ERROR


def test_strict_keeps_the_best_and_the_lower_place_among_equals():
  p = P.copy()
  p[[2, 7]] = P.max() + 0.1
  places, there, drafted = (np.asarray(x) for x in run(p, p, rule='strict', drafts=4, trials=64))
  np.testing.assert_array_equal(places, np.broadcast_to(np.argsort(-p, kind='stable')[:K], places.shape))
  assert list(places[0, :2]) == [2, 7] and there.all() and 0 < drafted.mean() < 1


@pytest.mark.parametrize('rule', CHOSEN)
def test_fewer_candidates_than_places_are_all_kept(rule):
  p = np.zeros(V)
  p[[4, 9]] = 0.3, 0.7
  for q in (Q, p):
    size = {'drafts': 4, 'trials': 64} if rule == 'strict' else {'drafts': 10}
    places, there, _ = (np.asarray(x) for x in run(p, q, rule=rule, **size))
    assert (there == [True, True, False]).all()
    assert (np.sort(places[:, :2], axis=1) == [4, 9]).all()


@pytest.mark.parametrize('rule', ['relaxed', *slow('relaxed_exact')])
def test_without_drafts_all_is_drawn_from_the_target(rule):
  log_p = np.log(P).astype(np.float32)
  nothing = rules.Drafts(
    np.full(4, -1, np.int32), np.full(4, -np.inf, np.float32), np.full(V, -np.inf, np.float32), np.float32(0)
  )
  # Also where the draft's law leaves nothing of the target's.
  all_of_p = nothing.replace(log_q_F=log_p)
  draw = jax.jit(jax.vmap(functools.partial(CHOSEN[rule], kept=K), (0, None, None)))
  for drafts in (nothing, all_of_p):
    places, there, drafted = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(1), TRIALS), log_p, drafts))
    assert there.all() and not drafted.any()
    assert fits(places, law_of_draws(P)) > LARGEST_ERROR
