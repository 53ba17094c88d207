"""Selection: budgets, order, domains, chance; and DSIR."""

import numpy as np
import pytest

from jaxlm.data import dsir, selection
from jaxlm.data.selection import Pool, select
from jaxlm.errors import DataError


def pool(D=400, seed=0, domains=3):
  random = np.random.default_rng(seed)
  tokens = np.exp(random.uniform(3, 7, D)).astype(int)
  return Pool(
    id=np.arange(D),
    tokens=tokens,
    S=random.normal(0.05, 3 / np.sqrt(tokens)),
    loss_forward=random.uniform(2, 5, D),
    se=3 / np.sqrt(tokens),
    domain=random.choice(domains, D, p=[0.7, 0.25, 0.05][:domains] / np.sum([0.7, 0.25, 0.05][:domains])),
    weight=random.normal(0, 20, D),
  )


def kept_tokens(p, found):
  return p.tokens[found.kept].sum()


@pytest.mark.parametrize('rule', selection.RULES)
def test_budget_is_met_within_one_document_by_every_rule_and_row_order_does_not_matter(rule):
  p = pool()
  for options in ({'budget_tokens': 20_000}, {'fraction': 0.3}, {'fraction': 1.0}, {}):
    found = select(p, rule=rule, **options)
    assert found.tokens == kept_tokens(p, found)
    assert abs(found.tokens - found.budget) <= p.tokens.max()
    assert found.budget == options.get('budget_tokens', round(options.get('fraction', 0.1) * p.tokens.sum()))
  assert select(p, rule=rule, fraction=1.0).kept.all()
  order = np.random.default_rng(5).permutation(len(p.id))
  for options in ({}, {'temperature': 0.5 if rule not in ('random', 'length-matched') else None, 'per_domain': True}):
    kept = select(p, rule=rule, **options).kept
    np.testing.assert_array_equal(select(p.take(order), rule=rule, **options).kept, kept[order])


def test_what_each_rule_keeps():
  p = pool()
  kept = lambda rule, **options: select(p, rule=rule, fraction=0.2, **options).kept
  highest, lowest = kept('highest'), kept('lowest')
  assert p.S[highest].min() > p.S[~highest].max() and p.S[lowest].max() < p.S[~lowest].min()
  easy, hard = kept('low-perplexity'), kept('high-perplexity')
  assert p.loss_forward[easy].max() < p.loss_forward[~easy].min()
  assert p.loss_forward[hard].min() > p.loss_forward[~hard].max()
  near = kept('abs-low')
  assert np.abs(p.S[near]).max() < np.abs(p.S[~near]).min()
  middle, top = kept('band'), kept('band', band=1.0)
  inside = (p.S >= p.S[middle].min()) & (p.S <= p.S[middle].max())
  np.testing.assert_array_equal(inside, middle)
  below = p.tokens[p.S < p.S[middle].min()].sum() / p.tokens.sum()
  assert below == pytest.approx(0.4, abs=0.02)
  assert (top != highest).sum() <= 1
  found = select(p, rule='highest', fraction=0.2)
  assert found.quantiles[0] == pytest.approx(0.8, abs=0.01) and found.quantiles[1] == 1
  dsir_kept = kept('dsir', temperature=0.0)
  assert p.weight[dsir_kept].min() > p.weight[~dsir_kept].max()


def test_equal_scores_are_kept_by_id():
  p = Pool(id=np.array([7, 3, 5, 1]), tokens=np.full(4, 10), S=np.zeros(4))
  np.testing.assert_array_equal(select(p, budget_tokens=20).kept, [False, True, False, True])


def test_random_documents_are_like_the_pool():
  p = pool(4000)
  found = select(p, rule='random', fraction=0.2, seed=3)
  S = p.S[found.kept]
  assert abs(S.mean() - p.S.mean()) < 2 * S.std() / np.sqrt(len(S))
  assert (select(p, rule='random', fraction=0.2, seed=4).kept != found.kept).any()


@pytest.mark.parametrize('rule', ['highest', 'random', 'length-matched', 'band'])
def test_each_domain_keeps_the_same_share(rule):
  p = pool(6000)
  found = select(p, rule=rule, fraction=0.25, per_domain=True)
  for domain in range(3):
    here = p.domain == domain
    assert p.tokens[here & found.kept].sum() / p.tokens[here].sum() == pytest.approx(0.25, abs=0.01)
  whole = select(p, rule=rule, fraction=0.25)
  assert abs(whole.tokens - found.tokens) < 2 * p.tokens.max()


def test_length_matched_documents_have_the_lengths_of_the_highest():
  p = pool(4000)
  matched, highest, random = (select(p, rule=r, fraction=0.1).kept for r in ('length-matched', 'highest', 'random'))
  bucket = selection.length_buckets(p.tokens)
  share = lambda kept: np.bincount(bucket[kept], p.tokens[kept], minlength=12) / p.tokens[kept].sum()
  np.testing.assert_allclose(share(matched), share(highest), atol=0.02)
  assert np.abs(share(random) - share(highest)).max() > 0.1
  assert p.S[matched].mean() < p.S[highest].mean() / 2
  np.testing.assert_array_equal(selection.length_buckets(np.array([1, 2, 3, 4, 1023, 1024])), [0, 1, 1, 2, 9, 10])


def test_scores_that_know_of_noise_keep_fewer_short_texts():
  p = pool(4000)
  mean = lambda score: p.tokens[select(p, score=score).kept].mean()
  assert mean('S') < mean('S/se') / 2 and mean('S') < mean('length-rank') / 2
  assert mean('length-rank') == pytest.approx(p.tokens.mean(), rel=0.15)
  one = Pool(id=np.arange(3), tokens=np.array([1, 9, 9]), S=np.array([9.0, 0, 0.1]), se=np.array([np.nan, 0, 0.1]))
  np.testing.assert_array_equal(select(one, score='S/se', fraction=1.0).kept, [False, True, True])


def test_temperature_mixes_in_chance():
  p = pool(4000)
  mean = lambda t, seed=0: p.S[select(p, temperature=t, seed=seed).kept].mean()
  assert mean(0.0) > mean(0.3) > mean(2.0) > mean(50.0)
  assert mean(0.3) != mean(0.3, seed=1)
  cold, hot = (select(p, rule='dsir', temperature=t).kept for t in (0.0, None))
  assert (cold != hot).any()


def test_short_documents_are_left_out():
  p = pool()
  found = select(p, min_tokens=100, fraction=0.5)
  assert p.tokens[found.kept].min() >= 100
  np.testing.assert_array_equal(found.eligible, p.tokens >= 100)
  assert found.budget == round(0.5 * p.tokens[p.tokens >= 100].sum())


def test_bad_input_is_refused():
  p = pool()
  for words, options in (
    ("rule 'higest'. Did you mean 'highest'", {'rule': 'higest'}),
    ("score 'S/sd'. Did you mean 'S/se'", {'score': 'S/sd'}),
    ('say the same thing twice', {'budget_tokens': 5, 'fraction': 0.1}),
    (r'fraction=1.5 must be within \(0, 1\]', {'fraction': 1.5}),
    ('budget_tokens=0', {'budget_tokens': 0}),
    ('temperature=-1', {'temperature': -1}),
    ('random already', {'rule': 'random', 'temperature': 1.0}),
    ('band=2', {'rule': 'band', 'band': 2}),
  ):
    with pytest.raises(ValueError, match=words):
      select(p, **options)
  with pytest.raises(DataError, match=f'more than the pool has: {p.tokens.sum()} tokens in 400 documents'):
    select(p, budget_tokens=10**9)
  with pytest.raises(DataError, match='None of the 400 documents has min_tokens=5000; the longest has'):
    select(p, min_tokens=5000)
  with pytest.raises(DataError, match='A budget of 4 tokens keeps nothing'):
    select(p, budget_tokens=4)
  with pytest.raises(DataError, match='holds no document'):
    select(p.take(np.zeros(0, int)))
  with pytest.raises(ValueError, match='need `weight`'):
    select(Pool(id=np.arange(2), tokens=np.ones(2, int), S=np.zeros(2)), rule='dsir')
  with pytest.raises(DataError, match='S of document 1 is nan'):
    Pool(id=np.arange(2), tokens=np.ones(2, int), S=np.array([0, np.nan]))
  with pytest.raises(DataError, match='same id'):
    Pool(id=np.zeros(2, int), tokens=np.ones(2, int), S=np.zeros(2))
  with pytest.raises(ValueError, match='tokens has the shape'):
    Pool(id=np.arange(2), tokens=np.ones(3, int), S=np.zeros(2))


# ---- DSIR ----


def test_weights_are_the_log_ratio_by_hand():
  target = ['the cat sat', 'the cat ran']
  pooled = ['the cat sat', 'buy now ! ! !', 'buy the cat']
  target_log_p, pool_log_p = dsir.log_probabilities(target), dsir.log_probabilities(pooled)
  assert np.exp(target_log_p).sum() == pytest.approx(1)
  weights = list(dsir.log_weights(pooled, target_log_p, pool_log_p))
  seen = {'target': 5 + 5, 'pool': 5 + 9 + 5}
  smoothed = lambda count, of: np.log((count + 1) / (seen[of] + dsir.BUCKETS))
  grams = {'the': (2, 2), 'cat': (2, 2), 'sat': (1, 1), 'the cat': (2, 2), 'cat sat': (1, 1)}
  assert weights[0] == pytest.approx(sum(smoothed(a, 'target') - smoothed(b, 'pool') for a, b in grams.values()))
  assert np.argmax(weights) == 0 and np.argmin(weights) == 1
  assert len(dsir.ngrams('Two words, here')) == 4 + 3
  np.testing.assert_array_equal(dsir.ngrams('The Cat'), dsir.ngrams('the cat'))
  with pytest.raises(DataError, match='no word'):
    dsir.log_probabilities(['  ', ''])
