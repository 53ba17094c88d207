"""What the study of recommendation measures of its models, on test users."""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from benchmarks import recommendation_decoding as decoding
from benchmarks import recommendation_runs as runs
from decoders import atspeed
from decoders.atspeed import Recommendations
from jaxlm.data.interactions import TEST
from jaxlm.evaluation import ranking
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket
from trainers.recommend import lists

LONGEST = 20
METRICS = ('recall@5', 'recall@10', 'recall@20', 'ndcg@5', 'ndcg@10', 'ndcg@20')
REPEATS = 3
"""Timed searches, of which the median counts."""


def recommending(
  config: Any, name: str, seed: int, target: LanguageModel, sasrec: LanguageModel
) -> list[dict[str, Any]]:
  """Returns a row for each recommender, measured on all test users; 'behind' is how far its NDCG@10 is below the target's, per user."""
  found = {}
  for system, lm, preset in (('SASRec', sasrec, 'ids-sasrec'), ('target', target, 'ids')):
    known, truth = lists.users_of(runs.histories(config, name, seed, preset).histories, TEST, None)
    items, _ = lists.recommend(lm, lm.tokenizer, lm.tokenizer.trie(), known, LONGEST, config.batch_size)
    found[system] = items, truth
  histories = runs.histories(config, name, seed).histories
  known, truth = lists.users_of(histories, TEST, None)
  simple = {name: (items, truth) for name, items in lists.simple_lists(histories, known, LONGEST).items()}
  rows, of_target = [], ndcg(*found['target'])
  for system, (items, truth) in {**simple, **found}.items():
    behind, error = ranking.mean_and_error(of_target - ndcg(items, truth))
    values = lists.metrics(items, truth, LONGEST)
    rows.append({
      'table': f'{name}: recommending', 'system': system, 'seed': seed, **{m: values[m] for m in METRICS}, 'behind': behind, 'standard error': error
    })  # fmt: skip
  return rows


def ndcg(items: Sequence[Sequence[int]], truth: Sequence[np.ndarray]) -> np.ndarray:
  """Returns [users] NDCG@10."""
  return np.array([ranking.ndcg_at(row, true.tolist(), 10) for row, true in zip(items, truth)])


class Searches:
  """Searches for the lists of test users, with and without a draft, and for the first seed their times."""

  def __init__(self, config: Any, name: str, seed: int, target: LanguageModel):
    histories = runs.histories(config, name, seed).histories
    known, self.truth = lists.users_of(histories, TEST, config.users)
    self.config, self.target, self.trie = config, target, target.tokenizer.trie()
    self.prompts = [target.tokenizer.prompt(history) for history in known]
    # Those that are timed share a bucket of lengths, and so their programs: single histories of all buckets would compile for minutes.
    buckets = [bucket(len(prompt)) for prompt in self.prompts]
    usual = max(set(buckets), key=buckets.count)
    self.few = [prompt for prompt, n in zip(self.prompts, buckets) if n == usual][: config.timed_users]
    self.name = name
    self.facts = {'table': f'{name}: drafts', 'seed': seed}
    self.is_timed = seed == 0

  def _search(self, k: int, draft: LanguageModel | None, **more: Any) -> tuple[Recommendations, np.ndarray | None]:
    """Returns the lists, and the seconds of a history [in batches, one by one]; what compiles is not timed. None: they are not timed."""
    size = self.config.batch_size
    run = lambda some, size: atspeed.recommend(self.target, draft, self.trie, some, k=k, batch_size=size, **more)
    out = run(self.prompts, size)
    if not self.is_timed:
      return out, None
    run(self.few, size), run(self.few, 1)
    times = [[run(self.few, n).stats['seconds_per_history'] for n in (size, 1)] for _ in range(REPEATS)]
    return out, np.median(times, axis=0)

  def rows(self, drafts: dict[str, LanguageModel]) -> list[dict[str, Any]]:
    """Returns a row for each number of beams, rule of verification, and draft by the name of its loss."""
    rows = []
    peer = decoding.peer(self.target, len(os.sched_getaffinity(0))) if self.config.peer and self.is_timed else None
    for k in self.config.ks:
      plain, plain_seconds = self._search(k, None)
      if peer is not None:
        rows.append(self._beside(peer, k, plain, plain_seconds))
      for rule in ('strict', 'relaxed'):
        for loss, draft in drafts.items():  # Drafts of one shape share programs, so they follow each other.
          out, seconds = self._search(k, draft, beam=self.config.beam, gamma=self.config.gamma, verify=rule)
          found = lists.metrics([row[:k] for row in out.items], self.truth, k)
          same = np.mean([a == b for a, b in zip(out.items, plain.items)])
          rows.append({
            **self.facts, 'loss': loss, 'rule': rule, 'K': k,
            'accepted steps': float(np.mean(out.stats['accept_steps'])), 'target calls': float(np.mean(out.stats['target_calls'])),
            'same lists %': 100 * float(same), 'recall@K': found[f'recall@{k}'], 'ndcg@K': found[f'ndcg@{k}'],
          })  # fmt: skip
          if seconds is not None:
            rows[-1] |= dict(zip(('times as fast', 'one by one'), (plain_seconds / seconds).tolist()))
    return rows

  def _beside(self, peer: Any, k: int, plain: Recommendations, seconds: np.ndarray) -> dict[str, Any]:
    """Returns how often transformers' constrained beam search finds the same lists, and its time divided by ours."""
    run = lambda prompts, size: decoding.transformers(peer, self.trie, prompts, k, size)
    size = self.config.batch_size
    items = run(self.prompts, size)[2]
    times = [[run(self.few, n)[0] / len(self.few) for n in (size, 1)] for _ in range(REPEATS)]
    return {
      'table': f'{self.name}: plain search', 'seed': self.facts['seed'], 'K': k,
      'same lists %': 100 * float(np.mean([a == b for a, b in zip(items, plain.items, strict=True)])),
      'same items %': 100 * float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(items, plain.items)])),
      'transformers / jaxlm': float(np.median(times, axis=0)[0] / seconds[0]),
      'one by one': float(np.median(times, axis=0)[1] / seconds[1]),
    }  # fmt: skip


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the means over seeds, in the order of the first seed, with standard deviations of 'target calls' and 'behind'."""
  labels = ('table', 'system', 'loss', 'rule', 'K')
  by_label: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows:
    by_label.setdefault(tuple(row.get(name) for name in labels), []).append(row)
  found = []
  for several in by_label.values():
    first = several[0]
    one = {name: first[name] for name in labels if name in first}
    for name in first:
      if name not in (*labels, 'seed'):
        one[name] = float(np.mean([row[name] for row in several if name in row]))
    for name, text in (('target calls', 'deviation of calls'), ('behind', 'deviation of behind')):
      if name in first and len(several) > 1:
        one[text] = float(np.std([row[name] for row in several], ddof=1))
    found.append(one | {'seeds': len(several)})
  return found
