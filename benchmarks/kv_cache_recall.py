"""Accuracy of each method on the prompts of a recall model (benchmarks/recall.py), and the bytes of its cache.

The last token of a prompt is the key. It is read with the full cache, and its ratios choose the lazy layers (stage='prefill'). So
every method predicts v1 from the full cache, and v2 and v3 from the cut cache. An answer counts if all three are the likeliest
tokens.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import kv_cache_methods as km
from benchmarks import recall
from benchmarks.kv_cache_tasks import forced
from decoders.simlayerkv import lazy_scores
import jaxlm

# Result of `calibrated`: on its 50 prompts one layer's ratio was at most 0.83 and those of the other three at least 0.998.
THRESHOLD, LAZY_LAYERS = 0.92, 3


def calibrated(lm: jaxlm.LanguageModel, count: int = 50) -> float:
  """Returns the middle of the widest gap between the ratios of all layers, on prompts that are not used for evaluation."""
  ratios = np.sort(lazy_scores(lm, recall.prompts(-1, count)[0].tolist(), recall.WINDOW).ravel())
  widest = np.diff(ratios).argmax()
  return float(ratios[widest : widest + 2].mean())


def methods(lm: jaxlm.LanguageModel) -> list[km.Method]:
  """Returns methods that cut LAZY_LAYERS layers or as many bytes, the rule by threshold, and as many random layers."""
  rule = recall.WINDOW.replace(threshold=THRESHOLD)
  fixed = km.methods(lm, recall.LENGTH, recall.WINDOW, LAZY_LAYERS)
  packed = next(m.lazy.quant for m in fixed if m.lazy.quant is not None)
  return [
    *fixed,
    km.Method('threshold', rule),
    km.Method('random, as threshold', rule, 'random'),
    km.Method('threshold, 4 bits', rule.replace(quant=packed)),
  ]


def scores(lm: jaxlm.LanguageModel, count: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[list[int]]]:
  """Returns (one row per method; the lazy layers of each prompt by threshold). Random layers are drawn for each prompt."""
  chosen, length, room = methods(lm), recall.LENGTH, 16
  said: dict[str, list[Any]] = {m.name: [] for m in chosen}
  held: dict[str, list[int]] = {m.name: [] for m in chosen}
  lazy_sets, rng = [], np.random.default_rng(seed)
  for prompt_T, answer_A in zip(*recall.prompts(seed, count)):
    prompt = km.read(lm, prompt_T.tolist(), recall.WINDOW, room)
    first = int(prompt.logits[0].argmax())
    for method in chosen:
      same = dataclasses.replace(method, lazy=method.lazy.replace(threshold=None, n_full=None))  # Fewer compilations.
      lazy_L = km.cut_layers(method, lm, prompt, rng)
      cache = km.cut(same, lm, prompt, lazy_L).cache
      logits = forced(lm.params, jnp.asarray(answer_A[None, :-1]), jnp.asarray([length]), cache, config=lm.config)
      said[method.name].append(np.array([first, *np.asarray(logits[0]).argmax(axis=-1)]) == answer_A)
      held[method.name].append(km.formula_bytes(method, lm, length, lazy_L))
      if method.name == 'threshold':
        lazy_sets.append(np.flatnonzero(lazy_L).tolist())
  right = {name: float(np.mean([hit.all() for hit in hits])) for name, hits in said.items()}
  mean = {name: float(np.mean(sizes)) for name, sizes in held.items()}
  rows = []
  for name in said:
    rows.append({
      'tokens': length, 'cache': name, 'prompts': count, 'kB': mean[name] / 1e3,
      'times smaller': mean['full'] / mean[name], 'accuracy': right[name],
      'of v2 and v3': float(np.mean([hit[1:].mean() for hit in said[name]])),
      'relative loss': 1 - right[name] / max(right['full'], 1e-9),
    })  # fmt: skip
  return rows, lazy_sets


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns statements about lazy layers that this task tests, and whether they hold."""
  by = {row['cache']: row for row in rows}
  right, smaller = (lambda name: by[name]['accuracy']), (lambda name: by[name]['times smaller'])
  rule, packed, chance = 'threshold', by['threshold, 4 bits'], recall.VALUES ** -(recall.ANSWER - 1.0)
  show = lambda name: f'{name} {right(name):.3f} at {smaller(name):.2f}x'
  found = [
    ('full cache: at least 99 %', right('full') >= 0.99, show('full')),
    (
      'threshold: within 1 point of full, at least 1.3 times smaller',
      right(rule) >= right('full') - 0.01 and smaller(rule) >= 1.3,
      show(rule),
    ),
    ('all layers lazy: at most chance + 5 points', right('all lazy') <= chance + 0.05, show('all lazy')),
    (
      'as many random layers lazy: at least 10 points worse',
      right('random, as threshold') <= right(rule) - 0.1,
      show('random, as threshold'),
    ),
    (
      'threshold and 4 bits: at least 5 times smaller, at most 1.2 % lost',
      packed['times smaller'] >= 5 and packed['relative loss'] <= 0.012,
      show('threshold, 4 bits') + f', {packed["relative loss"]:.2%} lost',
    ),
  ]
  return [{'statement': what, 'pass': bool(holds), 'measured': measured} for what, holds, measured in found]
