"""python -m benchmarks.kv_cache: quality, size and speed of cut and quantised caches, compared with kvpress.

recall  a small model that is trained (once) to retrieve key-value pairs: accuracy and cache bytes of each method
speed   SmolLM2: bytes and decode tokens/s of full, lazy and 4-bit caches; kvpress cuts the same layers with the same settings
tasks   SmolLM2: retrieval of pass keys and facts, and perplexity, for methods that keep equally many bytes

Each part writes a file kv_cache_PART.json.
"""

import collections
import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import report
from jaxlm import console


@dataclasses.dataclass(frozen=True)
class Config:
  """Cut and quantised KV caches on a recall model and on SmolLM2-135M."""

  parts: tuple[Literal['recall', 'speed', 'tasks'], ...] = ('recall', 'speed', 'tasks')
  recall_prompts: int = 250
  lengths: tuple[int, ...] = (2048, 4096, 8192)
  """speed: length of the context in tokens when decoding ends."""
  recent: int = 256
  """speed: number of latest tokens that lazy layers keep."""
  lazy_layers: int = 16
  """speed: number of lazy layers of 30; the threshold is chosen to give it."""
  task_length: int = 4096
  """tasks: number of tokens in a text."""
  task_recent: int = 1020
  task_lazy_layers: tuple[int, ...] = (4, 8, 12, 16)
  asked: bool = True
  """tasks: choose layers and tokens with the question known."""
  prompts: int = 4
  """tasks: number of prompts of each kind."""
  steps: int = 32
  """speed: number of tokens decoded in one timed run."""
  repeats: int = 5
  peer: bool = True
  """speed: run kvpress too (pip install -e '.[bench]')."""
  seed: int = 0
  threads: int = len(os.sched_getaffinity(0))
  """Number of PyTorch's threads; XLA uses all cores of the process."""


def main(config: Config) -> None:
  from jaxlm.data import embedded, fetch

  if 'speed' in config.parts and config.peer:
    require_kvpress()
  settings = dataclasses.asdict(config)
  if 'recall' in config.parts:
    found = recalled(config.recall_prompts, config.seed)
    report.write('kv_cache_recall', found.pop('recall'), **found, config=settings)
  if set(config.parts) == {'recall'}:
    return
  import jaxlm

  lm = jaxlm.load(fetch.fetch('smollm2'), dtype='float32')
  text = lm.tokenizer.encode('\n'.join(itertools.islice(embedded.read(), 40)))
  if 'speed' in config.parts:
    speed(lm, text, config)
  if 'tasks' in config.parts:
    from benchmarks import kv_cache_tasks
    from decoders.simlayerkv.config import LazyConfig

    lazy, numbers = LazyConfig(n_recent=config.task_recent), config.task_lazy_layers
    rows, lazy_sets = kv_cache_tasks.scores(
      lm, text, config.task_length, lazy, numbers, config.prompts, config.seed, config.asked
    )
    draw(rows, report.RESULTS / 'kv_cache_tasks.png')
    report.write('kv_cache_tasks', rows, **{'lazy sets': lazy_sets}, config=settings)


def speed(lm: Any, text: list[int], config: Config) -> None:
  from benchmarks import kv_cache_speed

  peer = None
  if config.peer:
    import torch

    torch.set_num_threads(config.threads)
    peer = kv_cache_speed.peer_of(lm)
  speed, scoring = [], []
  for length in config.lengths:
    rows, identified = kv_cache_speed.rows_of(
      lm, text, length, config.recent, config.lazy_layers, config.steps, config.repeats, peer
    )
    speed += rows
    scoring.append(identified)
    print(report.table(rows), report.table(scoring), sep='\n\n', flush=True)
  report.write('kv_cache_speed', speed, identification=scoring, config=dataclasses.asdict(config))


def recalled(prompts: int, seed: int) -> dict[str, Any]:
  """Prints the accuracy of each method and whether the statements hold; returns both."""
  from benchmarks import kv_cache_recall, recall

  rows, lazy_sets = kv_cache_recall.scores(recall.trained(), prompts, seed)
  verdicts = kv_cache_recall.checks(rows)
  print(report.table(rows), flush=True)
  for v in verdicts:
    print('PASS' if v['pass'] else 'MISS', v['statement'], '--', v['measured'])
  counted = collections.Counter(map(str, lazy_sets))
  return {'recall': rows, 'recall checks': verdicts, 'recall lazy sets': dict(counted.most_common())}


def require_kvpress() -> None:
  try:
    import kvpress  # noqa: F401
  except ImportError as error:
    raise SystemExit(
      f"Speed is shown beside kvpress: pip install -e '.[bench]', or pass --no-peer ({error})."
    ) from None


def draw(tasks: list[dict[str, Any]], path: Path) -> None:
  """Plots the quality of each method on each task against the compression of its cache."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

  measures = ('pass key', 'facts', 'perplexity')
  figure = Figure(figsize=(12, 3.6), layout='constrained')
  names = list(dict.fromkeys(row['cache'] for row in tasks))
  for axis, measure in zip(figure.subplots(1, 3), measures):
    for i, name in enumerate(names):
      rows = sorted((r for r in tasks if r['cache'] == name), key=lambda r: r['times smaller'])
      # Markers are hollow and of different sizes, so that overlapping ones stay visible.
      style = {'marker': 'os^vDP*X<>h'[i % 11], 'color': f'C{i - 1}' if i else 'black', 'linewidth': 0.8}
      style |= {'markerfacecolor': 'none', 'markersize': 4 + i % 6}
      axis.plot([r['times smaller'] for r in rows], [r[measure] for r in rows], label=name, **style)
    axis.set(xlabel='times smaller than the full cache', xscale='log', title=measure)
    axis.set_xticks([1, 2, 4, 8], ['1', '2', '4', '8'])
    axis.xaxis.set_minor_formatter('')
    if measure != 'perplexity':
      axis.set_ylim(-0.05, 1.05)
    axis.grid(alpha=0.3)
  figure.legend(*axis.get_legend_handles_labels(), loc='outside right center', fontsize=8)
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
