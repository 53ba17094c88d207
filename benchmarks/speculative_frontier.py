"""Share of its own text that a model predicts without the sub-layers that a search finds, and without those chosen one by one.

Sets are found on the model's answers to some prompts, and evaluated on these and on other answers. The search scores windows of a
text in the order in which a stream would generate them. The time to generate is not counted.
"""

from collections.abc import Sequence
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.speculative_streams import greedy_text
from decoders.prefill import prefill
from decoders.swift import matchness, skipping
from decoders.swift.config import SwiftConfig
from decoders.swift.search import Search
from decoders.swift.search_base import SearchBase
from decoders.swift.sets import SkipSet, uniform
from jaxlm.language_model import LanguageModel

NEW = 96  # Number of tokens that the model generates for each prompt.
STEP = 8  # Number of tokens between two windows of a text.


def rows(
  lm: LanguageModel,
  seen: Sequence[list[int]],
  unseen: Sequence[list[int]],
  skipped: Sequence[int],
  sets: int | None,
  searches: int,
) -> list[dict[str, Any]]:
  """Returns a row for each search, for each set chosen one by one, and for skipping every second layer.

  Args:
    seen, unseen: prompts on whose texts sets are found, and other prompts.
    skipped: numbers of sub-layers to skip.
    sets: largest number of sets that a search scores (None: it may read as many tokens as choosing one by one does).
    searches: number of searches, with different seeds, for each number of sub-layers.
  """
  layers, texts = lm.config.num_layers, {'seen': greedy_text(lm, seen, NEW), 'held out': greedy_text(lm, unseen, NEW)}
  total = 2 * (layers - 2)

  def agreement(skip_sets: list[SkipSet], where: str) -> np.ndarray:
    return np.mean([matchness(lm, ids, skip_sets, NEW - 1) for ids in texts[where]], axis=0)

  def tokens_one_by_one(number: int) -> int:
    return sum(range(total - number + 1, total + 1)) * len(seen) * (NEW - 1)

  def row(found_by: str, skip_set: SkipSet, scored: int, tokens: int) -> dict[str, Any]:
    judged = {where: float(agreement([skip_set], where)[0]) for where in texts}
    counts = {f'skipped of {total}': len(skip_set), 'found by': found_by, 'sets': scored, 'tokens': tokens}
    made = counts | judged | {'set': f'attention {skip_set.attention}, MLP {skip_set.mlp}'}
    print(made, flush=True)
    return made

  made = [row('every second layer', uniform(layers), 0, 0)]
  for number, seed in itertools.product(skipped, range(1, searches + 1)):
    swift = SwiftConfig(skip_ratio=(number + 0.5) / total)
    # The best set is scored too on each window.
    as_long = tokens_one_by_one(number) / swift.context_window * swift.num_candidates / (swift.num_candidates + 1)
    limits = {'max_opt_iter': sets} if sets else dict.fromkeys(('max_opt_iter', 'max_tolerance_iter'), int(as_long))
    search = searched(lm, swift.replace(**limits), texts['seen'], seed)
    tokens = (search.iterations + len(search.history)) * swift.context_window
    made.append(row(f'search {seed}', search.best, search.iterations, tokens))
  # The reference for searches: greedily add the best sub-layer, scored on all the text at once.
  vector, scored = np.zeros(total, bool), 0
  for number in range(1, max(skipped) + 1):
    free = np.flatnonzero(~vector)
    tried = [SkipSet.of(vector | (np.arange(total) == i), layers) for i in free]
    vector[free[np.argmax(agreement(tried, 'seen'))]] = True
    scored += len(tried)
    if number in skipped:
      made.append(row('one by one', SkipSet.of(vector, layers), scored, tokens_one_by_one(number)))
  return sorted(made, key=lambda r: r[f'skipped of {total}'])


def searched(lm: LanguageModel, swift: SwiftConfig, texts: Sequence[list[int]], seed: int) -> SearchBase:
  """Returns a search that has ended; it repeats the last NEW - 1 tokens of the texts until then."""
  length, window = max(map(len, texts)), swift.context_window
  search, position = Search(swift, lm.config.num_layers, seed=seed), 0
  read = []
  for ids in texts:
    text, total = jnp.asarray([ids + [0] * (length - len(ids))], jnp.int32), jnp.asarray([len(ids)])
    read.append((text, total, prefill(lm.params, text, total, total, config=lm.config, capacity=length)[1]))
  while search.active:
    for ids, (text, total, cache) in zip(texts, read):
      for first in range(len(ids) - NEW, len(ids) - window, STEP):
        if not search.active:
          return search
        position += STEP
        sets = search.propose(position)
        keep = jnp.asarray(np.stack([s.keep(lm.config.num_layers) for s in [*sets, search.best]]))
        matched, near = skipping.scores(
          lm.params, keep, text, jnp.asarray([first]), jnp.ones(1, bool), total, cache, config=lm.config, window=window
        )
        matched = np.asarray(matched).tolist()
        search.observe(sets, matched[:-1], matched[-1], np.asarray(near).tolist())
      position += window  # Windows of different texts share no tokens.
  return search
