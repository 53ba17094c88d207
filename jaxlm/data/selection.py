"""Selects documents of a scored pool for training: sorts by a rule, adds up tokens, and cuts at a budget. Pure NumPy.

  kept = argsort(-key)[:n],   n: the number of documents whose tokens come nearest to the budget

The rules are that of the reverse-modeling paper (highest S, https://arxiv.org/abs/2410.09817) and baselines. Ties and random
numbers follow the order of ids, so the selection does not depend on the order of rows or shards.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxlm import errors

if TYPE_CHECKING:
  from jaxtyping import Bool, Float, Int

RULES = {
  'highest': 'the highest scores: easier in reverse',
  'lowest': 'the lowest: easier forward',
  'random': 'any',
  'length-matched': 'any, of the lengths that `highest` would keep',
  'low-perplexity': 'the lowest forward losses',
  'high-perplexity': 'the highest forward losses',
  'dsir': "the most alike to a target corpus, by `weight` and Gumbel noise (DSIR's sampling)",
  'abs-low': 'scores nearest to 0',
  'band': 'scores nearest to a quantile, counted in tokens',
}
SCORES = {
  'S': 'the difference of the mean losses',
  'S/se': 'the same in standard errors: short texts need a larger difference',
  'length-rank': 'the rank of S among texts of alike length (a power of two), from 0 to 1',
}


@dataclasses.dataclass(frozen=True)
class Pool:
  """Scored documents; arrays [D].

  Attributes:
    id: unique id of each document.
    tokens: number of tokens of each document.
    S: forward loss - reverse loss.
    loss_forward: mean forward loss, for the rules on perplexity.
    se: standard error of S, for the score 'S/se'.
    domain: index of the domain.
    weight: log importance weights, for the rule 'dsir'.
  """

  id: Int[np.ndarray, ' D']
  tokens: Int[np.ndarray, ' D']
  S: Float[np.ndarray, ' D']
  loss_forward: Float[np.ndarray, ' D'] | None = None
  se: Float[np.ndarray, ' D'] | None = None
  domain: Int[np.ndarray, ' D'] | None = None
  weight: Float[np.ndarray, ' D'] | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      x = getattr(self, field.name)
      if x is None:
        continue
      if np.shape(x) != np.shape(self.id):
        raise ValueError(f'{field.name} has the shape {np.shape(x)}, id {np.shape(self.id)}.')
      # The standard error of a document of one token is NaN; the score 'S/se' leaves this document out.
      if field.name != 'se' and not np.isfinite(x).all():
        at = np.flatnonzero(~np.isfinite(x))[0]
        raise errors.DataError(f'{field.name} of document {self.id[at]} is {x[at]}: such a score ranks nothing.')
    if len(np.unique(self.id)) < len(self.id):
      raise errors.DataError('Two documents of the pool have the same id.')

  def take(self, rows: np.ndarray) -> 'Pool':
    """Returns some of the rows."""
    return Pool(*(None if x is None else x[rows] for x in vars(self).values()))


@dataclasses.dataclass(frozen=True)
class Selection:
  """The selected documents of a pool.

  Attributes:
    kept: [D] bool, whether a document is selected.
    eligible: [D] bool, whether a document could be selected.
    budget: number of tokens to select.
    tokens: number of tokens selected.
    quantiles: shares of the eligible tokens with S below the lowest selected S, and with S up to the highest selected S.
  """

  kept: Bool[np.ndarray, ' D']
  eligible: Bool[np.ndarray, ' D']
  budget: int
  tokens: int
  quantiles: tuple[float, float]


def check_options(
  *, rule: str, score: str, budget_tokens: int | None, fraction: float | None, temperature: float | None, band: float
) -> None:
  """Raises ValueError for options that are invalid for every pool."""
  if rule not in RULES:
    raise errors.unknown('rule', rule, RULES)
  if score not in SCORES:
    raise errors.unknown('score', score, SCORES)
  if budget_tokens is not None and fraction is not None:
    raise ValueError(f'{budget_tokens=} and {fraction=} say the same thing twice: give one.')
  if budget_tokens is not None and budget_tokens < 1:
    raise ValueError(f'{budget_tokens=} must be at least 1.')
  if fraction is not None and not 0 < fraction <= 1:
    raise ValueError(f'{fraction=} must be within (0, 1].')
  if temperature is not None and not 0 <= temperature < np.inf:
    raise ValueError(f'{temperature=} must not be negative.')
  if temperature and rule in ('random', 'length-matched'):
    raise ValueError(f'{rule=} is random already: {temperature=} has no meaning.')
  if not 0 <= band <= 1:
    raise ValueError(f'{band=} must be a quantile, within 0 .. 1.')


def select(
  pool: Pool,
  *,
  budget_tokens: int | None = None,
  fraction: float | None = None,
  rule: str = 'highest',
  score: str = 'S',
  per_domain: bool = False,
  temperature: float | None = None,
  band: float = 0.5,
  min_tokens: int = 0,
  seed: int = 0,
) -> Selection:
  """Returns which documents to keep.

  Args:
    budget_tokens, fraction: number of tokens to keep, or the share of the eligible tokens; 0.1 if neither is given.
    rule: one of RULES.
    score: one of SCORES; the rules `highest`, `lowest`, `length-matched`, `abs-low` and `band` rank by it.
    per_domain: keeps the same share of each domain's tokens.
    temperature: scale of Gumbel noise added to the ranked values, in their standard deviations: sampling without
      replacement. None: no noise, except for `dsir`, whose noise has the scale 1 in nats.
    band: quantile of the score around which the rule `band` keeps documents.
    min_tokens: documents with fewer tokens are not eligible.
    seed: seed of the random rules and of the noise.

  Raises:
    DataError: the pool is empty, has no eligible document, or has fewer tokens than the budget.
    ValueError: an unknown rule or score, or numbers out of range.
  """
  check_options(
    rule=rule, score=score, budget_tokens=budget_tokens, fraction=fraction, temperature=temperature, band=band
  )
  for needed, name in ((rule.endswith('perplexity'), 'loss_forward'), (rule == 'dsir', 'weight'), (score == 'S/se', 'se'), (per_domain, 'domain')):  # fmt: skip
    if needed and getattr(pool, name) is None:
      raise ValueError(f'{rule=}, {score=} and {per_domain=} need `{name}`, which the pool lacks.')
  if not len(pool.id):
    raise errors.DataError('The pool holds no document.')
  eligible = pool.tokens >= max(min_tokens, 1)
  if score == 'S/se':
    eligible &= np.isfinite(pool.se)
  if not eligible.any():
    raise errors.DataError(
      f'None of the {len(pool.id)} documents has {min_tokens=}; the longest has {pool.tokens.max()}: lower min_tokens.'
    )
  order = np.argsort(pool.id, kind='stable')
  rows = order[eligible[order]]
  p = pool.take(rows)
  total = int(p.tokens.sum())
  if budget_tokens is not None and budget_tokens > total:
    raise errors.DataError(
      f'{budget_tokens=} is more than the pool has: {total} tokens in {len(rows)} documents'
      + (f' of {min_tokens} tokens or more' if min_tokens > 1 else '')
      + '. Lower the budget, or score more text.'
    )
  budget = (
    budget_tokens if budget_tokens is not None else max(1, round((0.1 if fraction is None else fraction) * total))
  )
  kept_P = np.zeros(len(rows), bool)
  random = np.random.default_rng(seed)
  value_P = _value(p, score)
  key_P = _key(p, rule, value_P, band, per_domain, temperature, random)
  for group in _groups(p.domain if per_domain else np.zeros(len(rows), int)):
    target = budget / total * p.tokens[group].sum()
    if rule == 'length-matched':
      kept_P[group] = _length_matched(value_P[group], key_P[group], p.tokens[group], target)
    else:
      kept_P[group] = _cut(key_P[group], p.tokens[group], target)
  if not kept_P.any():
    raise errors.DataError(
      f'A budget of {budget} tokens keeps nothing: every document that could come first is longer.'
    )
  kept = np.zeros(len(pool.id), bool)
  kept[rows[kept_P]] = True
  lowest, highest = p.S[kept_P].min(), p.S[kept_P].max()
  quantiles = float(p.tokens[p.S < lowest].sum() / total), float(p.tokens[p.S <= highest].sum() / total)
  return Selection(kept, eligible, budget, int(p.tokens[kept_P].sum()), quantiles)


def length_buckets(tokens: Int[np.ndarray, ' D']) -> Int[np.ndarray, ' D']:
  """Returns floor(log2 tokens)."""
  return np.frexp(np.maximum(tokens, 1).astype(np.float64))[1] - 1


def _groups(labels_P):
  """Returns a list of the row indices of each label."""
  order = np.argsort(labels_P, kind='stable')
  return np.split(order, np.flatnonzero(np.diff(labels_P[order])) + 1)


def _value(p: Pool, score: str):
  if score == 'S':
    return p.S
  if score == 'S/se':  # If both losses are equal for every target, S and se are 0, and so is the score.
    return np.where(p.S == 0, 0.0, p.S / np.maximum(p.se, np.finfo(np.float64).tiny ** 0.5))
  rank_P = np.zeros(len(p.id))
  for group in _groups(length_buckets(p.tokens)):
    rank_P[group[np.argsort(p.S[group], kind='stable')]] = (np.arange(len(group)) + 0.5) / len(group)
  return rank_P


def _key(p: Pool, rule: str, value_P, band: float, per_domain: bool, temperature: float | None, random):
  """Returns the sort key of each document; documents with higher keys are kept first."""
  if rule in ('random', 'length-matched'):
    return random.random(len(p.id))
  if rule == 'band':
    key_P = np.zeros(len(p.id))
    for group in _groups(p.domain if per_domain else np.zeros(len(p.id), int)):
      by_value = group[np.argsort(value_P[group], kind='stable')]
      middle = np.cumsum(p.tokens[by_value]) - p.tokens[by_value] / 2
      key_P[by_value] = -np.abs(middle / p.tokens[group].sum() - band)
  else:
    key_P = {
      'highest': lambda: value_P,
      'lowest': lambda: -value_P,
      'abs-low': lambda: -np.abs(value_P),
      'low-perplexity': lambda: -p.loss_forward,
      'high-perplexity': lambda: p.loss_forward,
      'dsir': lambda: p.weight,
    }[rule]()
  if rule == 'dsir':  # Weights are log-probabilities in nats, so the noise is not scaled by their standard deviation.
    return key_P + (1.0 if temperature is None else temperature) * random.gumbel(size=len(key_P))
  return key_P + temperature * key_P.std() * random.gumbel(size=len(key_P)) if temperature else key_P


def _cut(key_P, tokens_P, target: float):
  """Returns the documents with the highest keys, as many as bring the number of tokens nearest to the target."""
  kept_P = np.zeros(len(key_P), bool)
  order = np.argsort(-key_P, kind='stable')  # Rows are sorted by id, so ties are broken by id.
  sums = np.concatenate([[0], np.cumsum(tokens_P[order])])
  after = min(int(np.searchsorted(sums, target)), len(order))
  n = after - 1 if after and target - sums[after - 1] < sums[after] - target else after
  kept_P[order[:n]] = True
  return kept_P


def _length_matched(value_P, key_P, tokens_P, target: float):
  """Returns random documents with the same number of tokens in each length bucket as the documents with the highest values."""
  highest_P, kept_P = _cut(value_P, tokens_P, target), np.zeros(len(key_P), bool)
  owed = target - tokens_P[highest_P].sum()
  # Long documents come first, so that short ones can fill the tokens that remain.
  for group in reversed(_groups(length_buckets(tokens_P))):
    owed += tokens_P[group][highest_P[group]].sum()
    chosen = _cut(key_P[group], tokens_P[group], max(owed, 0.0))
    kept_P[group] = chosen
    owed -= tokens_P[group][chosen].sum()
  return kept_P
