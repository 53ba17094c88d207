"""The part glide of `benchmarks.speculative`: GliDe's drafts beside the other ways to decode the same prompts, greedily.

For each target, the drafts of `benchmarks.speculative_drafts` are trained if they are not there, each by itself. Then every method
decodes every prompt. M is the number of tokens per round, the accepted ones and the target's own; its error is one standard error over
prompts. 'by position' has the acceptance of the first, second, ... token of a chain, given that those before it were accepted. Trees have
no such column, since a round may end with a token beside the chain.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report, speculative_drafts, speculative_prompts, stochastic_depth
from benchmarks import speculative_streams as ss
from benchmarks.speculative_costs import Costs, measure
import decoders
from decoders.glide import PAPER_BINS, GlideDecoding
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.swift import Stream as SwiftStream
from decoders.swift import SwiftConfig
import jaxlm
from jaxlm.lengths import bucket

MAX_DRAFT = 4
SHAPES = {'chain': (1,), 'width 2': (2,), 'width 4': (4,), 'width 8': (8,), 'CaPE': PAPER_BINS}
"""Candidates in place of each drafted token: a chain, the same number everywhere, and the paper's numbers by confidence."""
SURE = 0.4
"""A sure chain ends after a token that the draft finds less probable."""
WIDENED = (('GliDe-3', 'own'), ('GliDe', 'own'))
"""The first of these drafts that was trained has trees of all shapes, and is also guarded, ends its chains early, and follows prompt
lookup. The others draft chains, and those of the target's own texts CaPE's trees."""


def run(target: str, config: Any) -> None:
  """Trains the drafts of a target, decodes with them, and writes speculative_glide_TARGET.json and .png.

  Args:
    target: 'smollm2' or 'redundant'.
    config: a `benchmarks.speculative.Config`.
  """
  setting = getattr(speculative_drafts, target)(config.glide_steps, config.glide_texts)
  setting = dataclasses.replace(setting, distill=config.glide_distill)
  drafts, trainings = {}, []
  for data in config.glide_data:
    for kind in config.glide_drafts if data == config.glide_data[0] else ('GliDe',):
      drafts[kind, data], facts = speculative_drafts.trained(setting, kind, data)
      trainings.append(facts)
  print(report.table(trainings), flush=True)
  lm = jaxlm.load(setting.target, 'float32')
  if target == 'smollm2':
    prompts, new_tokens = speculative_prompts.prompts(lm, config.each), config.new_tokens
  else:
    pieces = stochastic_depth.prompts(config.prompts, config.prompt_bytes)
    prompts, new_tokens = [('held out', ids) for ids in pieces], config.new_bytes
  costs = costs_of(lm, drafts, prompts, new_tokens, config)
  found = ss.run_all(prompts, methods(lm, drafts, prompts, new_tokens, config))
  rows = rows_of(found, costs)
  verdicts = checks(rows)
  name = f'speculative_glide_{target}'
  report.write(
    name, rows, trainings=trainings, checks=verdicts, config=dataclasses.asdict(config),
    costs={name: dataclasses.asdict(c) for name, c in costs.items()},
    flips={way: gaps for way in found if (gaps := ss.flips(lm, prompts, found, way))},
  )  # fmt: skip
  draw(rows, report.RESULTS / f'{name}.png')


def methods(
  lm: jaxlm.LanguageModel,
  drafts: dict[tuple[str, str], Any],
  prompts: Sequence[tuple[str, list[int]]],
  new_tokens: int,
  config: Any,
) -> dict[str, ss.Maker]:
  """Returns plain decoding, prompt lookup, SWIFT, and each draft with its trees."""
  options, swift = options_of(prompts, new_tokens, config), SwiftConfig(max_draft=config.max_draft)
  lookup = PromptLookup(max_draft=config.lookup_draft)
  look = lambda prompts, **o: decoders.speculative.generate(lm, prompts, drafter=lookup, **o)
  ways = {
    'plain': lambda: ss.ours(lambda prompts, **o: decoders.generate(lm, prompts, **o), **options),
    'prompt lookup': lambda: ss.ours(look, **options),
    'SWIFT, guarded': lambda: ss.ours(SwiftStream(lm, swift).generate, **options),
  }
  widened = next((draft for draft in WIDENED if draft in drafts), None)
  for (kind, data), draft in drafts.items():
    few = {'chain': (1,), 'CaPE': PAPER_BINS} if data == 'own' and kind != 'parallel' else {'chain': (1,)}
    for shape, bins in (SHAPES if (kind, data) == widened else few).items():
      stream = decoders.glide.Stream(lm, draft, GlideDecoding(max_draft=MAX_DRAFT, bins=bins, guard=False))
      ways[f'{kind}, {data}, {shape}'] = lambda stream=stream: ss.ours(stream.generate, **options)
  if widened:
    chain = GlideDecoding(max_draft=MAX_DRAFT, bins=(1,))
    for name, decoding, more in (
      ('guarded', chain, {}),
      ('sure chain', chain.replace(threshold=SURE, guard=False), {}),
      ('after lookup', chain.replace(threshold=SURE, guard=False), {'lookup': lookup}),
    ):
      stream = decoders.glide.Stream(lm, drafts[widened], decoding)
      ways[f'{", ".join(widened)}, {name}'] = lambda stream=stream, more=more: ss.ours(
        stream.generate, **options, **more
      )
  return ways


def costs_of(lm, drafts, prompts, new_tokens: int, config: Any) -> dict[str, Costs]:
  """Returns the costs of the parts of a round of each draft's chain."""
  costs = {}
  for (kind, data), draft in drafts.items():
    drafter = decoders.glide.Stream(lm, draft, GlideDecoding(max_draft=MAX_DRAFT, bins=(1,))).drafter
    costs[f'{kind}, {data}, chain'] = measure(
      lm, prompts[0][1], drafter, config.repeats, **options_of(prompts, new_tokens, config)
    )
  return costs


def options_of(prompts: Sequence[tuple[str, list[int]]], new_tokens: int, config: Any) -> dict[str, int]:
  """Returns the options of `decoders.generate`. The cache has one size for prompts of all lengths, so that each method is one program."""
  longest = max(len(ids) for _, ids in prompts)
  most = max(MAX_DRAFT * (1 + max(PAPER_BINS)), config.max_draft) + 1
  return dict(max_new_tokens=new_tokens, capacity=bucket(longest + new_tokens + most))


def rows_of(found: dict[str, list[tuple[str, ss.Run]]], costs: dict[str, Costs]) -> list[dict[str, Any]]:
  """Returns the rows of `speculative_streams.rows_of`, with the error of M, the size of trees, and the acceptance by position."""
  rows = ss.rows_of(found, costs)
  for row in rows:
    runs = [r.stats for kind, r in found[row['method']] if row['kind'] in (kind, 'all') and r.stats.get('rounds')]
    row |= {'error': '', 'nodes': '', 'by position': ''}
    if not runs:
      continue
    rounds, accepted = (np.array([stats[name] for stats in runs], float) for name in ('rounds', 'accepted'))
    row['error'] = ratio_error(accepted, rounds) if len(runs) > 1 else ''
    row['nodes'] = sum(stats['verified'] for stats in runs) / rounds.sum()
    if 'drafted_at' in runs[0] and row['nodes'] <= 1 + MAX_DRAFT:
      row['by position'] = by_position(runs)
  return rows


def ratio_error(above: np.ndarray, below: np.ndarray) -> float:
  """Returns the standard error of sum(above) / sum(below) over prompts, nan for a single prompt."""
  n, ratio = len(above), above.sum() / below.sum()
  return float(np.sqrt(np.sum((above - ratio * below) ** 2) / (n - 1) / n) / below.mean()) if n > 1 else float('nan')


def by_position(runs: Sequence[dict[str, Any]]) -> list[float]:
  """Returns the acceptance of each position of a chain, given that the positions before it were accepted."""
  accepted = np.sum([stats['accepted_at'] for stats in runs], axis=0)
  reached = np.sum([stats['drafted_at'] for stats in runs], axis=0)
  reached[1:] = np.minimum(reached[1:], accepted[:-1])
  return [round(float(a / max(r, 1)), 3) for a, r in zip(accepted, reached)]


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the aims of the part as statements, and whether they hold."""
  of = {(row['kind'], row['method']): row for row in rows}
  kinds, verdicts = [*dict.fromkeys(row['kind'] for row in rows)], []

  def add(statement: str, holds: bool, measured: float) -> None:
    verdicts.append({'statement': statement, 'pass': bool(holds), 'measured': round(measured, 3)})
    print('PASS' if holds else 'MISS', statement, '--', verdicts[-1]['measured'])

  for kind in kinds:
    for draft in ('GliDe', 'GliDe-3'):
      mine, vanilla, cape = (
        of.get((kind, way)) for way in (f'{draft}, own, chain', 'vanilla, own, chain', f'{draft}, own, CaPE')
      )
      if mine and vanilla:
        more = mine['M'] - vanilla['M']
        add(f'{kind}: {draft} has more tokens per round than the vanilla draft', more > 0, more)
      if mine and cape:
        more = cape['M'] - mine['M']
        add(f'{kind}: CaPE adds tokens per round to {draft}', more > 0, more)
  # A guarded stream drafts in a few rounds only, and prompt lookup has a part in the last one.
  alone = lambda way: way.startswith('GliDe') and not way.endswith((', guarded', ', after lookup'))
  drafted = [row for row in rows if row['kind'] == 'all' and alone(row['method'])]
  best = max(drafted, key=lambda row: row['M'], default=None)
  if best:
    add(f'all: at least 2 tokens per round ({best["method"]})', best['M'] >= 2, best['M'])
  for row in rows:
    if row['kind'] == 'all' and row['method'].startswith(('GliDe', 'vanilla', 'parallel')):
      add(f'{row["method"]}: faster than plain decoding', row['speed-up'] > 1, row['speed-up'])
  return verdicts


def draw(rows: list[dict[str, Any]], path: Path) -> None:
  """Plots tokens per round by kind of prompt, acceptance by position, and tokens per round against the size of the tree."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

  figure = Figure(figsize=(13, 4.6), layout='constrained')
  left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
  drafted = [row for row in rows if row.get('M')]
  names = [*dict.fromkeys(row['method'] for row in drafted if row['method'].endswith((', chain', 'lookup', 'CaPE')))]
  kinds, width = [*dict.fromkeys(row['kind'] for row in rows)], 0.8 / max(len(names), 1)
  if len(kinds) == 2:  # A single kind of prompt, and the mean over it.
    kinds = kinds[:1]
  for i, name in enumerate(names):
    of = {row['kind']: row for row in drafted if row['method'] == name}
    there = [(k + (i - len(names) / 2) * width, of[kind]) for k, kind in enumerate(kinds) if kind in of]
    heights, errors = ([row[key] or 0 for _, row in there] for key in ('M', 'error'))
    left.bar([place for place, _ in there], heights, width, yerr=errors, label=name)
  left.set_xticks(range(len(kinds)), kinds)
  left.set(ylabel='tokens per round', ylim=(1, None), title='Accepted length, one standard error')
  for row in drafted:
    if row['kind'] == 'all' and row['by position'] and row['method'].endswith('chain'):
      middle.plot(range(1, len(row['by position']) + 1), row['by position'], 'o-', label=row['method'])
  middle.set(xlabel='position in the chain', ylabel='acceptance', ylim=(0, 1), title='Acceptance by position')
  of = {row['method']: row for row in drafted if row['kind'] == 'all'}
  all_shapes = ([f'{", ".join(draft)}, {shape}' for shape in SHAPES] for draft in WIDENED)
  for row in [of[name] for name in next((names for names in all_shapes if set(names) <= set(of)), [])]:
    right.errorbar(row['nodes'], row['M'], row['error'] or 0, fmt='o', label=row['method'].split(', ')[-1])
  right.set(xlabel='verified tokens per round', ylabel='tokens per round', title='Size of the tree')
  for axis in (left, middle, right):
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.15), ncol=4 if axis is left else 2)
  figure.savefig(path, dpi=120)
