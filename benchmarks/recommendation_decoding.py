"""python -m benchmarks.recommendation_decoding: speed of beam search over items, with and without a draft, and of other ways to search.

With the same float32 weights, identifiers and histories in one run: plain constrained beam search of jaxlm, speculative beam search with
several numbers of drafted prefixes, beam search with K copies of each history's cache, and transformers' constrained beam search.

The models are random. The target's first layer holds the draft, and everything else adds little, so that the draft is a good one; the
time that a layer takes does not depend on its weights.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import os
from pathlib import Path
import tempfile
import time
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console

Found = tuple[float, float, list[list[int]], Any]
"""(Seconds of all queries, seconds of the processor, the items of each, what else there is to say)."""


SHAPES = {'2x128': (2, 128, 16), '6x256': (6, 256, 704), '12x768': (12, 768, 2048)}
"""Targets by name: layers, width (a multiple of 64, the width of a head), width of the MLP."""
DRAFT_DIM = 64
"""Width of the draft, which has one layer."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Beam search of random targets over random identifiers."""

  targets: tuple[Literal['2x128', '6x256', '12x768'], ...] = ('6x256', '12x768')
  """Layers x width of the targets; 2x128 is for tests."""
  ks: tuple[int, ...] = (1, 3, 5, 10, 20)
  """Numbers of identifiers to find, and of beams of the target (K)."""
  multiples: tuple[float, ...] = (1, 1.5, 2, 4)
  """Numbers of prefixes that the draft keeps (N), as multiples of K, rounded up."""
  order: Literal['score', 'nested'] = 'nested'
  """Which prefixes the draft keeps (see decoders.atspeed.AtSpeedConfig)."""
  gamma: int = 3
  """Steps that the draft runs ahead."""
  items: int = 10_000
  codes: int = 64
  """Codes of each of the four levels of an identifier."""
  history_items: int = 20
  """Items of a history, each of four tokens."""
  queries: int = 4
  batch: int = 1
  """Histories that are read together."""
  others: float = 0.02
  """What all other weights of the target are multiplied by: the larger, the worse is the draft."""
  repeats: int = 3
  """Timed runs of each way, in turn, after one that is not timed."""
  peer: bool = True
  """Also run transformers."""
  threads: int = len(os.sched_getaffinity(0))
  """Number of PyTorch's threads; XLA uses all cores of the process."""
  seed: int = 0

  def __post_init__(self):
    if not (self.targets and self.ks and self.multiples):
      raise ValueError('targets, ks and multiples must each name at least one.')
    if min(self.ks) < 1 or min(self.multiples) < 1:
      raise ValueError(
        f'ks={self.ks} and multiples={self.multiples} must be at least 1: a draft keeps at least K prefixes.'
      )


def main(config: Config) -> None:
  if config.peer:
    report.require_peer()
  rows = []
  for target in config.targets:
    lm, draft, trie, histories = made(config, target)
    peer_model = peer(lm, config.threads) if config.peer else None
    for k in config.ks:
      search = functools.partial(ours, lm, trie, histories, k, config.batch)
      runs = {'plain': functools.partial(search, None)}
      for beam in sorted({math.ceil(k * multiple) for multiple in config.multiples}):
        runs[f'N={beam}'] = functools.partial(search, draft, beam=beam, order=config.order, gamma=config.gamma)
      runs['copies of the history'] = functools.partial(copies(lm, k, config.batch), trie, histories)
      if config.peer:
        runs['transformers'] = functools.partial(transformers, peer_model, trie, histories, k, config.batch)
      new = rows_of(config, report.in_turn(runs, config.repeats))
      print(report.table(new), flush=True)
      rows += [{'table': target, 'K': k, **row} for row in new]
  report.write(
    'recommendation_decoding', rows, checks=checks(rows), config=dataclasses.asdict(config), load=list(os.getloadavg())
  )


def rows_of(config: Config, found: dict[str, list[Found]]) -> list[dict[str, Any]]:
  """Returns a row of the table for each way to search."""
  median = lambda runs, part: float(np.median([run[part] for run in runs])) / config.queries
  plain, rows = median(found['plain'], 0), []
  expected = [set(row) for row in found['plain'][0][2]]
  for name, runs in found.items():
    *_, items, stats = runs[0]
    rows.append({
      'way': name, 'seconds per query': median(runs, 0), 'plain / this': plain / median(runs, 0), 'processor s': median(runs, 1),
      'same items': float(np.mean([len(set(found) & wanted) / len(wanted) for found, wanted in zip(items, expected)])),
    })  # fmt: skip
    if stats is not None:
      rows[-1]['target calls'] = float(np.mean(stats['target_calls']))
      for part in ('target_seconds', 'draft_seconds'):
        rows[-1][part] = float(np.median([run[3][part] for run in runs])) / config.queries
  return rows


def checks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the aims as statements, what was measured, and whether they hold."""
  found = []
  for target, k in dict.fromkeys((row['table'], row['K']) for row in rows):
    ratio = {row['way']: row['plain / this'] for row in rows if (row['table'], row['K']) == (target, k)}
    if 'transformers' in ratio:
      times = 1 / ratio['transformers']
      found.append(report.verdict(f'{target}, K={k}: transformers / plain at least 3', times >= 3, times))
    best = max((way for way in ratio if way.startswith('N=')), key=ratio.get)
    text = f'{target}, K={k}: plain / speculative at least 1.5 at its best, which is with {best}'
    found.append(report.verdict(text, ratio[best] >= 1.5, ratio[best]))
  same = min(row['same items'] for row in rows)
  return [*found, report.verdict('all ways find the same items', same == 1, same)]


def timed(search) -> Found:
  """Returns the result of search() -> (items, what else there is to say) with the time that it took."""
  start, of_process = time.perf_counter(), time.process_time()
  found = search()
  return time.perf_counter() - start, time.process_time() - of_process, *found


def made(config: Config, size: str):
  """Returns (target, draft, trie, histories); `size`: a name in SHAPES."""
  import jax
  import jax.numpy as jnp

  from jaxlm.config import ModelConfig
  from jaxlm.data.item_trie import ItemTrie
  from jaxlm.language_model import LanguageModel
  from jaxlm.models.transformer import init_params

  rng, levels = np.random.default_rng(config.seed), 4
  codes = np.unique(rng.integers(0, config.codes, (config.items, levels)) + np.arange(levels) * config.codes, axis=0)
  trie = ItemTrie.from_ids(codes)
  histories = [codes[rng.integers(0, len(codes), config.history_items)].ravel().tolist() for _ in range(config.queries)]
  shape = lambda layers, dim, mlp: ModelConfig(
    vocab_size=levels * config.codes, num_layers=layers, model_dim=dim, num_heads=dim // 64, num_kv_heads=dim // 64, head_dim=64,
    mlp_dim=mlp, max_length=max(128, levels * config.history_items + 16), dtype='float32',
  )  # fmt: skip
  layers, model_dim, mlp_dim = SHAPES[size]
  small = shape(1, DRAFT_DIM, mlp_dim * DRAFT_DIM // model_dim)
  large = shape(layers, model_dim, mlp_dim)
  draft, target = (
    jax.tree.map(np.asarray, jax.jit(init_params, static_argnums=0)(c, jax.random.key(config.seed)))
    for c in (small, large)
  )
  # Larger logits, so that the best identifiers are well ahead of the next ones.
  draft['head'] = draft['head'] * np.float32(6 / DRAFT_DIM**0.5 / draft['head'].std())
  # Norms divide by the root of a mean over all dimensions, of which most are nearly 0.
  narrower = (DRAFT_DIM / model_dim) ** 0.5

  def held(path, whole, part=None):
    name = jax.tree_util.keystr(path)
    if 'norm' in name:
      return whole * np.float32(narrower)
    grows = part is not None or "['o']" in name or "['down']" in name
    whole = whole * np.float32(config.others if grows else 1)
    if part is not None:
      whole[tuple(slice(n) for n in part.shape)] = part
    return whole

  of_draft = dict(jax.tree_util.tree_leaves_with_path(draft))
  target = jax.tree_util.tree_map_with_path(lambda path, x: held(path, x, of_draft.get(path)), target)
  on_device = lambda c, params: LanguageModel(c, jax.tree.map(jnp.asarray, params))
  return on_device(large, target), on_device(small, draft), trie, histories


def ours(lm, trie, histories, k: int, batch: int, draft, **options) -> Found:
  from decoders.atspeed import recommend

  def search():
    out = recommend(lm, draft, trie, histories, k, batch_size=batch, **options)
    return out.items, out.stats

  return timed(search)


def copies(lm, k: int, batch: int) -> Callable[..., Found]:
  """Returns the usual beam search, with K rows for each history, each with a cache of its own that holds the history."""
  import jax
  import jax.numpy as jnp

  from decoders.beam.hypotheses import take
  from decoders.beam.prefixes import Prefixes, candidates, extended
  from jaxlm.caches import FullCache
  from jaxlm.lengths import bucket
  from jaxlm.models import functions

  c, K = lm.config, k
  logits_of = lambda params, states_RD: functions.logits(params, c, states_RD).reshape(-1, K, c.vocab_size)

  @functools.partial(jax.jit, static_argnames='room')
  def read(params, tokens_BP, lengths_B, *, room):
    tokens_RP, lengths_R = (jnp.repeat(x, K, axis=0) for x in (tokens_BP, lengths_B))
    cache = FullCache.create(c, len(tokens_RP), tokens_BP.shape[1] + room)
    states_RPD, cache = functions.hidden(params, c, tokens_RP, None, cache)
    return logits_of(params, states_RPD[jnp.arange(len(tokens_RP)), lengths_R - 1]), cache

  @jax.jit
  def extend(logits_BKV, beams, trie):
    beams, at_BK = extended(candidates(logits_BKV, beams, trie), K)
    return beams, take(jnp.arange(at_BK.size).reshape(at_BK.shape), at_BK // trie.fan_out).reshape(-1)

  @jax.jit
  def step(params, beams, rows_R, cache, lengths_B, t, trie):
    tokens_R1, positions_R1 = beams.tokens(trie).reshape(-1, 1), jnp.repeat(lengths_B + t, K)[:, None]
    states_R1D, cache = functions.hidden(params, c, tokens_R1, positions_R1, cache.reordered(rows_R))
    return logits_of(params, states_R1D[:, 0]), cache

  def search(trie, histories):
    items = []
    for first in range(0, len(histories), batch):
      some = histories[first : first + batch]
      tokens = np.zeros((len(some), bucket(max(map(len, some)))), np.int32)
      for row, history in zip(tokens, some):
        row[: len(history)] = history
      lengths, beams = jnp.asarray([len(h) for h in some], jnp.int32), Prefixes.roots(len(some), K)
      logits, cache = read(lm.params, jnp.asarray(tokens), lengths, room=trie.depth)
      for t in range(trie.depth):
        beams, rows = extend(logits, beams, trie)
        if t + 1 < trie.depth:
          logits, cache = step(lm.params, beams, rows, cache, lengths, jnp.int32(t), trie)
      items += [[i for leaf in trie.items(row) for i in leaf] for row in np.asarray(beams.nodes)]
    return items, None

  return lambda trie, histories: timed(lambda: search(trie, histories))


def peer(lm, threads: int) -> Any:
  """Returns transformers' model with the weights."""
  import torch
  import transformers

  import jaxlm

  torch.set_num_threads(threads)
  with tempfile.TemporaryDirectory() as folder:
    jaxlm.save_huggingface(lm, Path(folder) / 'hf')
    model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / 'hf', dtype=torch.float32).eval()
  model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
  return model


def transformers(model, trie, histories, k: int, batch: int) -> Found:
  """Searches with `generate(num_beams=K, prefix_allowed_tokens_fn=...)`; shorter histories of a batch are padded on the left."""
  import torch

  allowed, leaves = allowed_tokens(trie), np.flatnonzero(np.asarray(trie.item_count))
  of_id = dict(zip(map(tuple, trie.tokens(leaves).tolist()), trie.items(leaves)))

  def search():
    items = []
    for first in range(0, len(histories), batch):
      some = histories[first : first + batch]
      width = max(map(len, some))
      inputs = torch.tensor([[0] * (width - len(row)) + list(row) for row in some])
      mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in some])
      with torch.inference_mode():
        out = model.generate(
          inputs, attention_mask=mask, num_beams=k, num_return_sequences=k, max_new_tokens=trie.depth,
          min_new_tokens=trie.depth, do_sample=False, length_penalty=0.0, pad_token_id=0,
          prefix_allowed_tokens_fn=lambda _, ids, width=width: allowed[tuple(ids[width:].tolist())],
        )  # fmt: skip
      rows = out[:, width:].reshape(len(some), k, -1).tolist()
      items += [[i for ids in row for i in of_id[tuple(ids)]] for row in rows]
    return items, None

  return timed(search)


def allowed_tokens(trie) -> dict[tuple[int, ...], list[int]]:
  """Returns prefix -> the tokens that may follow."""
  found: dict[tuple[int, ...], set[int]] = {}
  for ids in trie.tokens(np.flatnonzero(np.asarray(trie.item_count))).tolist():
    for n in range(len(ids)):
      found.setdefault(tuple(ids[:n]), set()).add(ids[n])
  return {prefix: sorted(tokens) for prefix, tokens in found.items()}


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
