"""Decodes streams of prompts with several methods in turn, and makes the rows of a table from the results."""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.speculative_costs import Costs
import decoders
from decoders.plain import drafting
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.swift import Stream, SwiftConfig
import jaxlm
from jaxlm.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Run:
  """The continuation of one prompt. Seconds count from the end of the prefill, without compiling."""

  tokens: list[int]
  seconds: float
  calls: int
  """Number of calls of the whole model after the first token."""
  timed: int
  """Number of tokens generated in these seconds."""
  search_seconds: float = 0.0
  stats: dict[str, Any] = dataclasses.field(default_factory=dict)


Method = Callable[[list[int]], Run]
Maker = Callable[[], Method]  # makes a method that has not run yet, so that a stream starts its search anew


def ours(generate: Callable, **options) -> Method:
  """Returns a method that calls generate([ids], **options)."""

  def run(ids: list[int]) -> Run:
    start = time.perf_counter()
    out = generate([ids], **options)
    stats, taken = out.stats, time.perf_counter() - start
    seconds = taken - stats['compile_seconds'] - stats['prefill_seconds']
    (tokens,) = out.rows()
    return Run(
      tokens, seconds, stats['target_calls'] - 1, len(tokens) - 1, stats.get('search_seconds', 0.0), dict(stats)
    )

  return run


def methods(
  lm: LanguageModel, swifts: dict[str, SwiftConfig], lookup: PromptLookup, both: str, **options
) -> dict[str, Maker]:
  """Returns plain decoding, prompt lookup, each of SWIFT's settings, and the one named `both` after prompt lookup."""
  plain = lambda prompts, **o: decoders.generate(lm, prompts, **o)
  look = lambda prompts, **o: decoders.speculative.generate(lm, prompts, drafter=lookup, **o)
  drafting = lambda swift, **more: lambda: ours(Stream(lm, swift).generate, **more, **options)
  return {
    'plain': lambda: ours(plain, **options),
    'prompt lookup': lambda: ours(look, **options),
    **{name: drafting(swift) for name, swift in swifts.items()},
    f'{both} after lookup': drafting(swifts[both], lookup=lookup),
  }


def run_all(prompts: Sequence[tuple[str, list[int]]], makers: dict[str, Maker]) -> dict[str, list[tuple[str, Run]]]:
  """Returns (kind, run) of each prompt for each method. Before, a separate copy of each method runs the first prompt as warm-up."""
  import tqdm

  found: dict[str, list[tuple[str, Run]]] = {name: [] for name in makers}
  for make in makers.values():
    make()(prompts[0][1])
  ways = {name: make() for name, make in makers.items()}
  for kind, ids in tqdm.tqdm(prompts, desc='prompts', mininterval=10):
    for name, way in ways.items():
      found[name].append((kind, way(ids)))
  return found


def rows_of(found: dict[str, list[tuple[str, Run]]], costs: dict[str, Costs], plain: str = 'plain') -> list[dict]:
  """Returns one row for each kind of prompt and method, and for all kinds together.

  Args:
    costs: costs of the methods whose speed is predicted.
    plain: the method with which speeds and tokens are compared.
  """
  kinds = [*dict.fromkeys(kind for kind, _ in found[plain]), 'all']
  rows = []
  for kind in kinds:
    of_kind = lambda name, kind=kind: [run for k, run in found[name] if kind in (k, 'all')]
    speed = lambda runs, seconds: sum(r.timed for r in runs) / seconds
    reference = of_kind(plain)
    base = speed(reference, sum(r.seconds for r in reference))
    for name in found:
      runs = of_kind(name)
      seconds = sum(r.seconds for r in runs)
      searching = sum(r.search_seconds for r in runs)
      counts = {key: sum(r.stats.get(key, 0) for r in runs) for key in ('rounds', 'drafted', 'accepted', 'verified')}
      per_call = lambda runs: sum(r.timed for r in runs) / sum(r.calls for r in runs)
      row = {
        'kind': kind, 'method': name, 'same': f'{sum(a.tokens == b.tokens for a, b in zip(runs, reference))}/{len(runs)}',
        'fewer calls': per_call(runs) / per_call(reference), 'tokens/s': speed(runs, seconds),
        'speed-up': speed(runs, seconds) / base, 'without search': speed(runs, seconds - searching) / base,
      }  # fmt: skip
      if counts['rounds']:
        told = counts | drafting(*counts.values())
        row |= {'M': told['tokens_per_round'], 'alpha': told['acceptance']}
        if 'skip_ratio' in runs[-1].stats:
          row['skipped'] = runs[-1].stats['skip_ratio']
        if name in costs:
          row |= {
            'c': costs[name].c(told),
            'predicted': costs[name].speedup(told),
            'v = 1': costs[name].paper_speedup(told),
          }
      rows.append(row)
  columns = {key: '' for row in rows for key in row}
  return [columns | row for row in rows]


def flips(lm: LanguageModel, prompts, found, name: str, plain: str = 'plain') -> list[float]:
  """Returns, for each greedy run that differs from the plain one, the difference of the first two different tokens' logits."""
  gaps = []
  for (_, ids), (_, a), (_, b) in zip(prompts, found[plain], found[name]):
    if a.tokens != b.tokens:
      at = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens)) if x != y), None)
      if at is None:
        gaps.append(float('inf'))  # One run is longer.
        continue
      logits = np.asarray(jaxlm.forward(lm, [[*ids, *a.tokens[:at]]]))[0, -1]
      gaps.append(float(abs(logits[a.tokens[at]] - logits[b.tokens[at]])))
  return gaps


def transformers_methods(lm: LanguageModel, new_tokens: int, early_exit: int, lookup: int) -> dict[str, Maker]:
  """Returns transformers' greedy decoding of the same weights: plain, with prompt lookup, and with early exit."""
  import torch
  import transformers

  with tempfile.TemporaryDirectory() as folder:
    jaxlm.save_huggingface(lm, Path(folder) / 'hf')
    model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / 'hf', dtype=torch.float32).eval()
  whole, calls = model.config.num_hidden_layers, [0]

  def count(*_):
    calls[0] += model.config.num_hidden_layers == whole

  model.model.register_forward_pre_hook(count)

  class Times:
    """A streamer that records the times at which tokens arrive."""

    def __init__(self):
      self.came = []

    def put(self, tokens):
      self.came.append((time.perf_counter(), tokens.numel(), calls[0]))

    def end(self):
      pass

  def method(**options) -> Method:
    def run(ids: list[int]) -> Run:
      times, prompt = Times(), torch.tensor([ids])
      with torch.inference_mode():
        out = model.generate(
          prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False, streamer=times,
          pad_token_id=lm.tokenizer.pad_id, eos_token_id=list(lm.tokenizer.stop_ids), **options,
        )  # fmt: skip
      tokens = out[0, len(ids) :].tolist()
      _, first, *rest = times.came  # The prompt comes first.
      seconds, made = (rest or [first])[-1][0] - first[0], sum(n for _, n, _ in rest)
      return Run(tokens, seconds, calls[0] - first[2], made)

    def counted(ids):
      calls[0] = 0
      return run(ids)

    return counted

  ways = {
    'transformers': method(),
    'transformers, prompt lookup': method(prompt_lookup_num_tokens=lookup),
    'transformers, early exit': method(assistant_early_exit=early_exit),
  }
  try:
    ways['transformers, early exit']([1, 2, 3, 4])
  except TypeError as e:  # transformers 5.2 passes an argument that its own class does not take.
    print(f'transformers {transformers.__version__} cannot exit early: {e}')
    model.config.num_hidden_layers = whole  # The failed call leaves the model with fewer layers.
    del ways['transformers, early exit']
  return {name: lambda way=way: way for name, way in ways.items()}


def greedy_text(lm: LanguageModel, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
  """Returns each prompt followed by the model's answer."""
  out = decoders.generate(lm, list(prompts), max_new_tokens=new_tokens, eos_id=None)
  return [[*ids, *row] for ids, row in zip(prompts, out.rows())]


def searched(lm: LanguageModel, swift, prompts: Sequence[list[int]], new_tokens: int, sets: int) -> Stream:
  """Returns a stream after a search over the prompts, which are repeated until the search ends or has scored `sets` sets."""
  # Several rounds between two steps of the search, so that windows have new tokens.
  stream = Stream(lm, swift.replace(guard=False, max_opt_iter=sets, opt_interval=8))
  while stream.search.active:
    before = stream.search.iterations
    for ids in prompts:
      if stream.search.active:
        stream.generate([ids], max_new_tokens=new_tokens, eos_id=None)
    if stream.search.iterations == before:
      raise ValueError(f'{new_tokens=} leave no window of {swift.context_window} tokens to score sets on.')
  return stream
