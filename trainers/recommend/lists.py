"""Recommendations of a model for users whose next items are known, and how good they are."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from decoders import atspeed
from jaxlm.data.catalogue import Catalogue
from jaxlm.data.interactions import TEST, VALID, Histories
from jaxlm.data.item_trie import ItemTrie
from jaxlm.evaluation import ranking
from jaxlm.language_model import LanguageModel

PARTS = {'valid': VALID, 'test': TEST}
KS = (1, 3, 5, 10, 20)


def lengths(k: int) -> tuple[int, ...]:
  """Returns the lengths at which lists of k items are measured."""
  return tuple(n for n in KS if n <= k)


def metric_names(k: int) -> tuple[str, ...]:
  return tuple(f'{name}@{n}' for n in lengths(k) for name in ('recall', 'ndcg'))


def users_of(histories: Histories, part: int, most: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns (histories, true items) of at most `most` users of a held-out part, evenly spread over them."""
  known, truth = histories.examples(part)
  if most is None or most >= len(known):
    return known, truth
  chosen = np.linspace(0, len(known) - 1, most).round().astype(int)
  return [known[i] for i in chosen], [truth[i] for i in chosen]


def recommend(
  lm: LanguageModel,
  items: Catalogue,
  trie: ItemTrie,
  histories: Sequence[np.ndarray],
  k: int,
  batch_size: int,
  *,
  draft: LanguageModel | None = None,
  stop: Callable[[], bool] = lambda: False,
  **settings: Any,
) -> tuple[list[list[int]], list[float]] | None:
  """Returns (items of each history, best first; the number of accepted steps of each), or None if `stop` says so.

  `settings`: those of `decoders.atspeed.recommend` for a draft.
  """
  found, accepted = [], []
  for first in range(0, len(histories), batch_size):
    if stop():
      return None
    prompts = [items.prompt(history) for history in histories[first : first + batch_size]]
    numbers = range(first, first + len(prompts))
    out = atspeed.recommend(lm, draft, trie, prompts, k=k, numbers=numbers, batch_size=batch_size, **settings)
    found += out.items
    accepted += out.stats['accept_steps']
  return found, accepted


def metrics(ranked: Sequence[Sequence[int]], truth: Sequence[np.ndarray], k: int) -> dict[str, float]:
  """Returns Recall and NDCG at the lengths up to k; {} if no user has true items."""
  return ranking.ranking_metrics(ranked, truth, lengths(k)) if len(truth) else {}


def baselines(histories: Histories, part: int, k: int, most: int | None = None) -> dict[str, dict[str, float]]:
  """Returns the metrics of popular items, and of the items that follow the last one most often; arguments as for `users_of`."""
  known, truth = users_of(histories, part, most)
  return {name: metrics(found, truth, k) for name, found in simple_lists(histories, known, k).items()}


def simple_lists(histories: Histories, known: Sequence[np.ndarray], k: int) -> dict[str, list[list[int]]]:
  """Returns lists of k items for the histories `known`: popular ones, and those that follow the last item most often in training."""
  learned = [histories.of(u, 0) for u in range(len(histories))]
  return {
    'popularity': ranking.popular(histories.popularity, len(known), k),
    'bigram': ranking.bigram(learned, histories.popularity, known, k),
  }
