"""python -m benchmarks.reverse_modeling: losses of models in reverse, and data selection by S = forward loss - reverse loss.

reading    losses of SmolLM2-135M, trained forward, on pages of text forward and reversed (https://arxiv.org/abs/2410.09817)
gap        held-out losses in both directions of small models trained on the same pages, forward only and both ways
cases      texts that the model of both directions finds easier in reverse, and what correlates with S; S of texts that were
           corrupted on purpose
selection  held-out loss, with bootstrapped intervals, of the forward model trained further on equally many tokens: those with the
           highest S, the lowest S, random ones, and those with the lowest forward loss

Each page is used once: for training, for selection or held out.
"""

import collections
import dataclasses
import time
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console
from jaxlm.evaluation.bootstrap import Difference, paired_difference

ARMS = {'high S': 'highest', 'low S': 'lowest', 'random': 'random', 'low forward loss': 'low-perplexity'}
PARTS = ('reading', 'gap', 'cases', 'selection')


@dataclasses.dataclass(frozen=True)
class Config:
  """Forward and reverse models, and data selection by the difference of their losses."""

  parts: tuple[Literal['reading', 'gap', 'cases', 'selection'], ...] = PARTS
  characters: int = 1_600_000
  """Number of characters of text in each domain."""
  corpora: tuple[str, ...] = ()
  """More domains, NAME=SPEC with a spec of jaxlm.data.sources."""
  vocab_size: int = 2048
  steps: int = 260
  """Number of training steps, of 16 x 128 tokens, for the forward model; the model of both directions takes twice as many."""
  seeds: int = 2
  pages: int = 24
  """reading: number of pages of each domain."""
  fraction: float = 0.15
  """selection: share of the pool's tokens that is selected."""
  more_steps: int = 40
  """selection: number of further training steps."""
  examples: int = 5
  """cases: number of texts shown with the highest S and with the lowest."""


def main(config: Config) -> None:
  from benchmarks import direction_models as dm
  from benchmarks import direction_texts
  from jaxlm.data import tokenizers

  start = time.perf_counter()
  if bad := [named for named in config.corpora if '=' not in named]:
    raise ValueError(f'corpora={bad[0]!r} must be NAME=SPEC.')
  extra = dict(named.split('=', 1) for named in config.corpora)
  texts = direction_texts.domains(extra, config.characters)
  results: dict[str, Any] = {'documents': {name: len(pages) for name, pages in texts.items()}}
  if 'reading' in config.parts:
    results['reading'] = reading(texts, config.pages)
    print(report.table(results['reading']), flush=True)
  if set(config.parts) - {'reading'}:
    split = {name: (pages[: int(0.45 * len(pages))], pages[int(0.45 * len(pages)) : int(0.9 * len(pages))], pages[int(0.9 * len(pages)) :]) for name, pages in texts.items()}  # fmt: skip
    train, pool, held_out = ([(name, page) for name in split for page in split[name][i]] for i in range(3))
    tokenizer = tokenizers.train_sentencepiece([page for _, page in train], config.vocab_size)
    corpus = dm.tokenized([page for _, page in train], tokenizer)
    gaps, arms, setting = [], [], dm.Setting()
    for seed in range(config.seeds):
      forward = dm.train(setting, corpus, tokenizer, 'forward', config.steps, seed)
      both = dm.train(setting, corpus, tokenizer, 'both', 2 * config.steps, seed)
      judged = {name: dm.scored(lm, [p for _, p in held_out]) for name, lm in (('forward', forward), ('both', both))}
      gaps += gap_rows(judged, held_out, seed)
      print(report.table(gaps), flush=True)
      if {'cases', 'selection'} & set(config.parts):
        scores = dm.scored(both, [page for _, page in pool])
        if 'cases' in config.parts and not seed:
          results |= cases(scores, pool, both, config.examples)
        if 'selection' in config.parts:
          arms += selection(setting, forward, scores, pool, held_out, judged['forward'], tokenizer, seed, config)
          print(report.table(arms), flush=True)
    results |= {'gap': gaps, 'selection': arms}
  results['minutes'] = (time.perf_counter() - start) / 60
  report.write('reverse_modeling', results.pop('selection', []) or results.get('reading'), **results, checks=checks(results), config=dataclasses.asdict(config))  # fmt: skip


def reading(texts: dict[str, list[str]], count: int) -> list[dict[str, Any]]:
  """Returns SmolLM2's losses on pages of each domain in both directions."""
  from benchmarks import direction_models as dm
  import jaxlm
  from jaxlm.data import fetch

  lm = jaxlm.load(fetch.fetch('smollm2'), dtype='float32')
  rows = []
  for name, pages in texts.items():
    forward, reverse = dm.means(dm.scored(lm, pages[-count:], max_length=512))
    rows.append({'domain': name, 'forward': forward, 'reverse': reverse, 'difference': reverse - forward})
  return rows


def gap_rows(judged: dict[str, list], held_out, seed: int) -> list[dict[str, Any]]:
  from benchmarks import direction_models as dm

  rows = []
  for name, scores in judged.items():
    for domain in ('all', *dict.fromkeys(d for d, _ in held_out)):
      some = [s for s, (d, _) in zip(scores, held_out) if domain in (d, 'all')]
      forward, reverse = dm.means(some)
      rows.append({'seed': seed, 'trained': name, 'domain': domain, 'forward': forward, 'reverse': reverse, 'relative gap': abs(reverse - forward) / forward})  # fmt: skip
  return rows


def cases(scores, pool, both, examples: int) -> dict[str, Any]:
  """Returns S by domain, its correlations, texts with extreme S, and how well S separates corrupted texts."""
  from jaxlm.analysis.direction import planted as direction_planted
  from jaxlm.analysis.direction import report as direction_report
  from jaxlm.analysis.statistics import rank_correlation

  S = np.array([s.S for s in scores])
  by_domain = []
  for domain in dict.fromkeys(d for d, _ in pool):
    of_domain = S[[d == domain for d, _ in pool]]
    low, middle, high = np.quantile(of_domain, (0.1, 0.5, 0.9))
    by_domain.append({'domain': domain, 'pages': len(of_domain), 'mean S': float(of_domain.mean()), '10 %': float(low), 'median': float(middle), '90 %': float(high)})  # fmt: skip
  features = {name: np.array([f(page) for _, page in pool]) for name, f in direction_report.FEATURES.items()}
  along = {'forward loss': np.array([s.loss_forward for s in scores]), 'tokens': np.array([s.tokens for s in scores])}
  correlations = {name: float(rank_correlation(S, x)) for name, x in (along | features).items()}
  tails = {
    name: [{'S': float(S[i]), 'domain': pool[i][0], 'text': direction_report.shortened(pool[i][1], 160)} for i in which]
    for name, which in direction_report.extremes(S, examples).items()
  }
  prose = [page for domain, page in pool if domain == 'docs']
  half = min(60, len(prose) // 2)
  planted = direction_planted.planted_table(both, prose[:half], prose[half:], batch_size=16)
  print(report.table(by_domain), f'S goes along with: {correlations}', sep='\n')
  for name, texts in tails.items():
    print(f'{name}:', *(f'  {t["S"]:+.3f} {t["domain"]}: {t["text"]}' for t in texts), sep='\n')
  print('AUC against spoiled texts:', planted, flush=True)
  return {'S by domain': by_domain, 'correlations': correlations, 'tails': tails, 'planted': planted}


def selection(setting, forward, scores, pool, held_out, before, tokenizer, seed: int, config: Config) -> list[dict]:
  """Returns a row for each rule: the texts that it selects, and the held-out loss after training on them."""
  from benchmarks import direction_models as dm
  from jaxlm.data import selection as choose

  domains = list(dict.fromkeys(d for d, _ in pool))
  candidates = choose.Pool(
    np.arange(len(pool)), np.array([s.tokens for s in scores]), np.array([s.S for s in scores]),
    np.array([s.loss_forward for s in scores]), domain=np.array([domains.index(d) for d, _ in pool]),
  )  # fmt: skip
  rows, after = [], {'none': before}
  chosen = {}
  for name, rule in ARMS.items():
    # Each rule takes the same share of each domain; otherwise S would select a domain.
    kept = choose.select(candidates, fraction=config.fraction, rule=rule, per_domain=True, seed=seed).kept
    texts = [pool[i][1] for i in np.flatnonzero(kept)]
    more = dm.train(setting, dm.tokenized(texts, tokenizer), tokenizer, 'forward', config.more_steps, seed, forward.params, name)  # fmt: skip
    after[name], chosen[name] = dm.scored(more, [page for _, page in held_out]), kept
  for name, judged in after.items():
    less = compared(judged, after['random'], seed)
    rows.append({
      'seed': seed, 'arm': name, 'documents': int(chosen[name].sum()) if name in chosen else 0,
      'mean S': float(candidates.S[chosen[name]].mean()) if name in chosen else '', 'held-out loss': dm.means(judged)[0],
      'less random': less.value, 'from': less.low, 'to': less.high,
    })  # fmt: skip
  return rows


def compared(a, b, seed: int) -> Difference:
  """Returns the difference of two arms' losses over the same pages."""
  nll = lambda scores: np.array([s.nll_forward for s in scores])
  return paired_difference(nll(a), nll(b), np.array([s.tokens for s in a]), seed=seed)


def checks(results: dict[str, Any]) -> list[dict[str, Any]]:
  verdicts = []

  def say(statement: str, holds: bool, measured: Any):
    verdicts.append({'statement': statement, 'pass': bool(holds), 'measured': measured})
    print('PASS' if holds else 'MISS', statement, '--', measured)

  for row in results.get('reading', ()):
    say(
      f'SmolLM2 reads {row["domain"]} reversed at least 1 nat worse', row['difference'] > 1, round(row['difference'], 2)
    )
  of_seed = collections.defaultdict(dict)
  for row in results.get('gap', ()):
    if row['domain'] == 'all':
      of_seed[row['seed']][row['trained']] = row
  for seed, by_model in of_seed.items():
    forward, both = by_model['forward'], by_model['both']
    worse = forward['reverse'] - forward['forward']
    say(f'seed {seed}: the forward model is more than 1 nat worse in reverse', worse > 1, round(worse, 2))
    say(
      f'seed {seed}: the gap of the model of both is below 3 %',
      both['relative gap'] < 0.03,
      round(both['relative gap'], 4),
    )
    times = both['forward'] / forward['forward']
    say(f'seed {seed}: and it reads forward within 5 % of the forward model', times < 1.05, round(times, 3))
  return verdicts


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
