"""What the study of recommendation measures of its models, on test users."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import recommendation_runs as runs
from decoders import atspeed
from jaxlm.data.interactions import TEST
from jaxlm.language_model import LanguageModel
from trainers.recommend import lists

LONGEST = 20


def recommending(
  config: Any, name: str, seed: int, target: LanguageModel, sasrec: LanguageModel
) -> list[dict[str, Any]]:
  """Returns a row for each recommender."""
  found = {}
  for system, lm, preset in (('SASRec', sasrec, 'ids-sasrec'), ('target', target, 'ids')):
    histories = runs.histories(config, name, seed, preset).histories
    known, truth = lists.users_of(histories, TEST, config.users)
    items, _ = lists.recommend(lm, lm.tokenizer, lm.tokenizer.trie(), known, LONGEST, config.batch_size)
    found[system] = lists.metrics(items, truth, LONGEST)
  simple = lists.baselines(runs.histories(config, name, seed).histories, TEST, LONGEST, config.users)
  rows = {**simple, **found}
  wanted = ('recall@5', 'recall@10', 'recall@20', 'ndcg@5', 'ndcg@10', 'ndcg@20')
  return [
    {'table': f'{name}: recommending', 'system': system, 'seed': seed, **{m: values[m] for m in wanted}}
    for system, values in rows.items()
  ]


def drafts(
  config: Any, name: str, seed: int, loss: str, target: LanguageModel, draft: LanguageModel
) -> list[dict[str, Any]]:
  """Returns a row for each rule of verification and number of beams."""
  histories = runs.histories(config, name, seed).histories
  known, truth = lists.users_of(histories, TEST, config.users)
  items, trie, rows = target.tokenizer, target.tokenizer.trie(), []
  prompts = [items.prompt(history) for history in known]

  def search(k: int, other: LanguageModel | None, **more: Any):
    """Returns the result of a second search: the first one compiles."""
    for _ in range(2):
      out = atspeed.recommend(target, other, trie, prompts, k=k, batch_size=config.batch_size, **more)
    return out

  for k in config.ks:
    plain = search(k, None)
    for rule in ('strict', 'relaxed'):
      out = search(k, draft, beam=config.beam, gamma=config.gamma, verify=rule)
      found = lists.metrics([row[:k] for row in out.items], truth, k)
      same = np.mean([a == b for a, b in zip(out.items, plain.items)])
      rows.append({
        'table': f'{name}: drafts', 'loss': loss, 'rule': rule, 'K': k, 'seed': seed,
        'accepted steps': float(np.mean(out.stats['accept_steps'])), 'target calls': float(np.mean(out.stats['target_calls'])),
        'times as fast': plain.stats['seconds_per_history'] / out.stats['seconds_per_history'],
        'same lists %': 100 * float(same), 'recall@K': found[f'recall@{k}'], 'ndcg@K': found[f'ndcg@{k}'],
      })  # fmt: skip
  return rows


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the means over seeds, in the order of the first seed, with the deviation of the target calls."""
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
        one[name] = float(np.mean([row[name] for row in several]))
    if 'target calls' in first and len(several) > 1:
      one['deviation of calls'] = float(np.std([row['target calls'] for row in several], ddof=1))
    found.append(one | {'seeds': len(several)})
  return found
