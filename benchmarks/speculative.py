"""python -m benchmarks.speculative: speed of speculative decoding, compared with a prediction from the costs of its parts.

gain      a deep, narrow model trained (once) with stochastic depth, so that it does not need most of its sub-layers: speed of SWIFT
          on held-out text for each skip ratio, and of a stream of requests that begins with the search
frontier  share of SmolLM2-135M's own text that it still predicts without the sub-layers that a search finds, and without those
          chosen one by one
smollm2   SmolLM2 on a stream of prompts of five kinds, greedy and sampled: plain decoding, prompt lookup, SWIFT, SWIFT combined
          with prompt lookup, and transformers' assisted generation with the same weights
glide     drafts that read the target's cache, trained for SmolLM2 and for the redundant model (at most 40 minutes each on two cores,
          kept in the cache folder), beside drafts of equal size that do not, and the methods above; only if it is asked for
ablations choices of these drafts changed one by one, on the redundant model; only if it is asked for

Each part writes a file speculative_PART.json, glide one for each target. Batch size 1, float32.
"""

import collections
import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import report
from jaxlm import console


@dataclasses.dataclass(frozen=True)
class Config:
  """Speculative decoding on a redundant model and on SmolLM2-135M."""

  parts: tuple[Literal['gain', 'frontier', 'smollm2', 'glide', 'ablations'], ...] = ('gain', 'frontier', 'smollm2')
  ratios: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85)
  """gain: shares of sub-layers skipped."""
  sets: int = 400
  """gain, frontier: largest number of sets that a search scores."""
  prompts: int = 40
  """gain: number of held-out prompts that are timed; the search uses as many others. glide: number of prompts of the redundant model."""
  prompt_bytes: int = 128
  new_bytes: int = 256
  """gain, glide: number of bytes that the redundant model generates after each prompt."""
  skipped: tuple[int, ...] = (4, 8, 12)
  """frontier: numbers of skipped sub-layers, of 56."""
  searches: int = 3
  """frontier: number of searches, with different seeds, for each number of sub-layers."""
  as_long: bool = False
  """frontier: let a search read as many tokens as choosing sub-layers one by one does, and ignore sets."""
  each: int = 8
  """smollm2, glide: number of prompts of each of the five kinds."""
  new_tokens: int = 64
  """smollm2, glide: number of tokens generated after each prompt, fewer if the model ends the text."""
  temperature: float = 0.7
  max_draft: int = 8
  """Largest number of tokens that SWIFT drafts in a round. On a CPU each verified token costs time, so trees are chains here."""
  lookup_draft: int = 6
  """Number of tokens that prompt lookup drafts in a round."""
  early_exit: int = 20
  """smollm2: layer after which transformers' early-exit draft ends."""
  glide_targets: tuple[Literal['redundant', 'smollm2'], ...] = ('redundant', 'smollm2')
  glide_drafts: tuple[Literal['GliDe', 'GliDe-3', 'vanilla', 'parallel'], ...] = (
    'GliDe',
    'GliDe-3',
    'vanilla',
    'parallel',
  )
  """glide: kinds of drafts. GliDe-3 reads three layers of the target, vanilla has no cross-attention, and parallel predicts a block in
  one call."""
  glide_data: tuple[Literal['own', 'real'], ...] = ('own', 'real')
  """glide: what drafts are trained on, texts that the target writes itself or real text; the second is for the kind GliDe alone."""
  glide_steps: int = 2400
  """glide: number of training steps of each draft of SmolLM2; a third of it for those of the redundant model."""
  glide_texts: int = 4000
  """glide: number of texts that each target writes for the training."""
  glide_distill: float = 1.0
  """glide: share of the loss that is the distance to the target's distribution; the rest is cross-entropy."""
  repeats: int = 9
  """Number of timings of each part of a round."""
  peer: bool = True
  """smollm2: run transformers too (pip install -e '.[bench]')."""
  threads: int = len(os.sched_getaffinity(0))
  """Number of PyTorch's threads; XLA uses all cores of the process."""


def main(config: Config) -> None:
  if config.peer and 'smollm2' in config.parts:
    report.require_peer()
    import torch

    torch.set_num_threads(config.threads)
  if 'gain' in config.parts:
    gain(config)
  if 'glide' in config.parts:
    from benchmarks import speculative_glide

    for target in config.glide_targets:
      speculative_glide.run(target, config)
  if 'ablations' in config.parts:
    from benchmarks import speculative_ablations

    speculative_ablations.run(config)
  if {'frontier', 'smollm2'} & set(config.parts):
    import jaxlm
    from jaxlm.data import fetch

    lm = jaxlm.load(fetch.fetch('smollm2'), dtype='float32')
    if 'frontier' in config.parts:
      frontier(lm, config)
    if 'smollm2' in config.parts:
      stream(lm, config)


def swift_of(config: Config, ratio: float):
  from decoders.swift import SwiftConfig

  chain = (1, 1, 1, 1)
  return SwiftConfig(skip_ratio=ratio, max_draft=config.max_draft, greedy_widths=chain, sampling_widths=chain)


def gain(config: Config) -> None:
  from benchmarks import speculative_streams as ss
  from benchmarks import stochastic_depth
  from decoders.speculative.prompt_lookup import PromptLookup
  from decoders.swift import Stream
  from decoders.swift.search import predicted_speedup

  lm, settings = stochastic_depth.trained(), dataclasses.asdict(config)
  prompts = stochastic_depth.prompts(2 * config.prompts, config.prompt_bytes)
  seen, unseen = prompts[: config.prompts], [('held out', ids) for ids in prompts[config.prompts :]]
  lookup = PromptLookup(max_draft=config.lookup_draft)
  swifts, searches = {}, []
  for ratio in config.ratios:
    search = ss.searched(lm, swift_of(config, ratio), seen, config.new_bytes, config.sets).search
    found = swift_of(config, ratio).replace(skip=search.best, search=False, guard=False, draft='static')
    swifts[f'SWIFT {ratio}'] = found
    searches.append({
      'ratio': ratio, 'sets': search.iterations, 'ended': search.stopped, 'matchness': search.best_score,
      'bytes of a draft': search.cost(search.best), 'attention': list(search.best.attention), 'mlp': list(search.best.mlp),
    })  # fmt: skip
    print(searches[-1], flush=True)
  best = max(searches, key=lambda s: predicted_speedup(s['matchness'], s['bytes of a draft'], config.max_draft))
  costs = costs_of(lm, prompts[0], swifts, lookup, config.repeats, max_new_tokens=config.new_bytes)
  ways = ss.methods(lm, swifts, lookup, f'SWIFT {best["ratio"]}', max_new_tokens=config.new_bytes)
  # As for a user: the search begins with the stream, and the guard is on.
  scratch = swift_of(config, config.ratios[len(config.ratios) // 2])
  ways['SWIFT from scratch'] = lambda: ss.ours(Stream(lm, scratch).generate, max_new_tokens=config.new_bytes)
  found = ss.run_all(unseen, ways)
  rows = [row for row in ss.rows_of(found, costs) if row['kind'] == 'all']
  verdicts = checks(rows)
  report.write(
    'speculative_gain', rows, costs=shown(costs), searches=searches, checks=verdicts, config=settings,
    flips={name: gaps for name in found if (gaps := ss.flips(lm, unseen, found, name))},
  )  # fmt: skip
  draw(rows, searches, report.RESULTS / 'speculative_gain.png')


def frontier(lm: Any, config: Config) -> None:
  from benchmarks import speculative_frontier, speculative_prompts

  chats = [lm.tokenizer.chat(question) for question in speculative_prompts.QUESTIONS]
  # Sets are found on the answers to four prompts, and evaluated on these and on the answers to four others.
  sets = None if config.as_long else config.sets
  rows = speculative_frontier.rows(lm, chats[4:], chats[:4], config.skipped, sets, config.searches)
  name = 'speculative_frontier_as_long' if config.as_long else 'speculative_frontier'
  report.write(name, rows, config=dataclasses.asdict(config))


def stream(lm: Any, config: Config) -> None:
  from benchmarks import speculative_prompts
  from benchmarks import speculative_streams as ss
  from decoders.options import Sampling
  from decoders.speculative.prompt_lookup import PromptLookup
  from jaxlm.lengths import bucket

  prompts = speculative_prompts.prompts(lm, config.each)
  lookup, swift = PromptLookup(max_draft=config.lookup_draft), swift_of(config, 8.5 / 56)
  search = ss.searched(lm, swift, [lm.tokenizer.chat(q) for q in speculative_prompts.QUESTIONS[:2]], 96, 200).search
  frozen = swift.replace(skip=search.best, search=False, guard=False, draft='static')
  # The cache has one size for prompts of all lengths, so that each method is one program.
  longest = max(len(ids) for _, ids in prompts)
  options = {
    'max_new_tokens': config.new_tokens,
    'capacity': bucket(longest + config.new_tokens + config.max_draft + 1),
  }
  rows, flips, all_costs = [], {}, {}
  for name, sampling in {'greedy': Sampling(), 'sampled': Sampling(temperature=config.temperature)}.items():
    swifts = {'SWIFT, guarded': swift, 'SWIFT, set given': frozen}
    given = {'SWIFT, set given': frozen}
    costs = costs_of(lm, prompts[0][1], given, lookup, config.repeats, **options)
    ways = ss.methods(lm, swifts, lookup, 'SWIFT, guarded', sampling=sampling, **options)
    if config.peer and name == 'greedy':
      ways |= ss.transformers_methods(lm, config.new_tokens, config.early_exit, config.lookup_draft)
    found = ss.run_all(prompts, ways)
    of_name = [{'decoding': name, **row} for row in ss.rows_of(found, costs)]
    print(report.table(of_name), flush=True)
    rows += of_name
    all_costs[name] = shown(costs)
    if name == 'greedy':
      flips = {way: gaps for way in found if (gaps := ss.flips(lm, prompts, found, way))}
  columns = {key: '' for row in rows for key in row}
  rows = [columns | row for row in rows]
  report.write(
    'speculative_smollm2', rows, costs=all_costs, flips=flips, checks=checks(rows), config=dataclasses.asdict(config)
  )


def costs_of(lm, prompt, swifts, lookup, repeats: int, **options) -> dict[str, Any]:
  """Returns the costs of the parts of a round of each method."""
  from benchmarks import speculative_costs
  from decoders.swift import Stream, SwiftLoop

  costs = {'prompt lookup': speculative_costs.measure(lm, prompt, lookup, repeats, drafts=False, **options)}
  for name, swift in swifts.items():
    drafter = dataclasses.replace(SwiftLoop(Stream(lm, swift), 'match', False, None).drafter, threshold=0.0)
    costs[name] = speculative_costs.measure(lm, prompt, drafter, repeats, **options)
  return costs


def shown(costs: dict[str, Any]) -> dict[str, Any]:
  return {name: dataclasses.asdict(c) for name, c in costs.items()}


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns statements about the rows, and whether they hold."""
  mine = [r for r in rows if not r['method'].startswith('transformers')]
  same = collections.Counter(r['same'].split('/')[0] == r['same'].split('/')[1] for r in mine if r['kind'] == 'all')
  verdicts = [{'statement': 'all tokens are plain decoding\'s', 'pass': not same[False], 'measured': f'{same[True]} of {sum(same.values())} methods'}]  # fmt: skip
  for r in mine:
    which = ' '.join(str(r.get(key, '')) for key in ('decoding', 'method', 'kind')).strip()
    if r['method'] == 'prompt lookup' and r['kind'] == 'repeat':
      verdicts.append(verdict(f'{which}: at least 1.5 times fewer calls', r['fewer calls'] >= 1.5, r['fewer calls']))
    if r.get('predicted') and r['kind'] == 'all':
      near = r['speed-up'] / r['predicted']
      verdicts.append(verdict(f'{which}: speed within 15 % of the prediction', abs(near - 1) <= 0.15, near))
      if r['predicted'] >= 1.3:
        verdicts.append(
          verdict(f'{which}: at least 1.3 times faster, as predicted', r['speed-up'] >= 1.3, r['speed-up'])
        )
    if ('guarded' in r['method'] or 'scratch' in r['method']) and r['kind'] == 'all':
      verdicts.append(
        verdict(f'{which}: no slower than plain by 5 %, search and all', r['speed-up'] >= 0.95, r['speed-up'])
      )
  for v in verdicts:
    print('PASS' if v['pass'] else 'MISS', v['statement'], '--', v['measured'])
  return verdicts


def verdict(statement: str, holds: bool, measured: float) -> dict[str, Any]:
  return {'statement': statement, 'pass': bool(holds), 'measured': round(measured, 3)}


def draw(rows: list[dict[str, Any]], searches: list[dict[str, Any]], path: Path) -> None:
  """Plots measured and predicted speed, matchness and acceptance against the share of sub-layers skipped."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

  of_ratio = {s['ratio']: next(r for r in rows if r['method'] == f'SWIFT {s["ratio"]}') for s in searches}
  ratios = list(of_ratio)
  figure = Figure(figsize=(9, 3.4), layout='constrained')
  left, right = figure.subplots(1, 2)
  for key, style in (('speed-up', 'o-'), ('predicted', 's--'), ('v = 1', '^:')):
    label = {'speed-up': 'measured', 'predicted': 'predicted', 'v = 1': 'predicted, verifying free'}[key]
    left.plot(ratios, [of_ratio[ratio][key] for ratio in ratios], style, label=label)
  left.axhline(1, color='#999999', linewidth=0.8)
  left.set(xlabel='share of sub-layers skipped', ylabel='times plain decoding', title='Speed')
  right.plot(ratios, [s['matchness'] for s in searches], 'o-', label='matchness of the set found')
  right.plot(ratios, [of_ratio[ratio]['alpha'] for ratio in ratios], 's-', label='drafted tokens accepted')
  right.plot(ratios, [of_ratio[ratio]['c'] for ratio in ratios], '^:', label='time of a draft step / plain step')
  right.set(xlabel='share of sub-layers skipped', ylim=(0, 1.02), title='Drafts')
  for axis in (left, right):
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
