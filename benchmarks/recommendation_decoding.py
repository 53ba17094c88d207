"""python -m benchmarks.recommendation_decoding: speed of beam search over items, with and without a draft, and of other ways to search.

With the same float32 weights, identifiers and histories in one run: plain constrained beam search of jaxlm, speculative beam search with
several numbers of drafted prefixes, beam search with K copies of each history's cache, and transformers' constrained beam search.

The target is random. Its layers after the first add little, so that its first layer alone is a good draft; the time that a layer takes
does not depend on its weights.
"""

import dataclasses
import functools
import os
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console

Found = tuple[float, list[list[int]], Any]
"""(Seconds of all queries, the items of each, what else there is to say)."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Beam search of a random target over random identifiers."""

  layers: int = 6
  model_dim: int = 256
  heads: int = 4
  mlp_dim: int = 704
  items: int = 10_000
  codes: int = 64
  """Codes of each of the four levels of an identifier."""
  history_items: int = 20
  """Items of a history, each of four tokens."""
  queries: int = 8
  batch: int = 1
  """Histories that are read together."""
  k: int = 10
  beams: tuple[int, ...] = (10, 20, 40)
  """Numbers of prefixes that the draft keeps (N)."""
  orders: tuple[str, ...] = ('nested',)
  """Which prefixes the draft keeps: score, nested (see decoders.atspeed.AtSpeedConfig)."""
  gamma: int = 3
  later: float = 0.1
  """What the layers after the first are multiplied by."""
  repeats: int = 5
  """Timed runs of each way, in turn, after one that is not timed."""
  peer: bool = True
  """Also run transformers."""
  threads: int = len(os.sched_getaffinity(0))
  """Number of PyTorch's threads; XLA uses all cores of the process."""
  seed: int = 0


def main(config: Config) -> None:
  lm, draft, trie, histories = made(config)
  runs = {'plain': functools.partial(ours, config, lm, None, trie, histories)}
  for beam in config.beams:
    for order in config.orders:
      runs[f'N={beam}, {order}'] = functools.partial(ours, config, lm, draft, trie, histories, beam=beam, order=order)
  runs['copies of the history'] = functools.partial(copies, config, lm, trie, histories)
  if config.peer:
    report.require_peer()
    runs['transformers'] = functools.partial(transformers, config, peer(config, lm), trie, histories)
  found = report.in_turn(runs, config.repeats)
  rows = rows_of(config, found)
  report.write('recommendation_decoding', rows, config=dataclasses.asdict(config), load=list(os.getloadavg()))


def rows_of(config: Config, found: dict[str, list[Found]]) -> list[dict[str, Any]]:
  """Returns a row of the table for each way to search."""
  median = lambda runs: float(np.median([seconds for seconds, _, _ in runs])) / config.queries
  plain, rows = median(found['plain']), []
  expected = [set(row) for row in found['plain'][0][1]]
  for name, runs in found.items():
    stats = runs[0][2]
    same = float(np.mean([len(set(items) & wanted) / len(wanted) for items, wanted in zip(runs[0][1], expected)]))
    own = {} if stats is None else {'target calls': float(np.mean(stats['target_calls']))}
    for part in () if stats is None else ('target_seconds', 'draft_seconds'):
      own[part] = float(np.median([run[2][part] for run in runs])) / config.queries
    rows.append(
      {'way': name, 'seconds per query': median(runs), 'plain / this': plain / median(runs), 'same items': same, **own}
    )
  return rows


def made(config: Config):
  """Returns (target, draft, trie, histories)."""
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
  shape = ModelConfig(
    vocab_size=levels * config.codes, num_layers=config.layers, model_dim=config.model_dim, num_heads=config.heads,
    num_kv_heads=config.heads, head_dim=config.model_dim // config.heads, mlp_dim=config.mlp_dim,
    max_length=max(128, 4 * config.history_items + 16), dtype='float32',
  )  # fmt: skip
  params = jax.jit(init_params, static_argnums=0)(shape, jax.random.key(config.seed))
  # Larger logits, so that the best identifiers are well ahead of the next ones.
  params['head'] = params['head'] * jnp.float32(6 / config.model_dim**0.5 / np.std(np.asarray(params['head'])))
  for i in range(1, config.layers):
    layer = params[f'layer_{i}']
    for place in (layer['attention']['o'], layer['mlp']['down']):
      place['kernel'] = place['kernel'] * config.later
  first = {name: x for name, x in params.items() if not name.startswith('layer_') or name == 'layer_0'}
  return LanguageModel(shape, params), LanguageModel(shape.replace(num_layers=1), first), trie, histories


def ours(config: Config, lm, draft, trie, histories, **options) -> Found:
  from decoders.atspeed import recommend

  out = recommend(lm, draft, trie, histories, config.k, gamma=config.gamma, batch_size=config.batch, **options)
  return out.stats['target_seconds'] + out.stats['draft_seconds'], out.items, out.stats


def copies(config: Config, lm, trie, histories) -> Found:
  """Searches with K rows for each history, each with a cache of its own that holds the history: the usual beam search."""
  import jax
  import jax.numpy as jnp

  from decoders.beam.hypotheses import take
  from decoders.beam.prefixes import Prefixes, candidates, extended
  from decoders.beam.reader import ModelReader
  from jaxlm.caches import FullCache
  from jaxlm.lengths import bucket
  from jaxlm.models import functions

  reader, K = ModelReader(lm.config), config.k

  @functools.partial(jax.jit, static_argnames='capacity')
  def read(params, tokens_BP, lengths_B, *, capacity):
    rows = jnp.repeat(tokens_BP, K, axis=0), jnp.repeat(lengths_B, K)
    cache = FullCache.create(lm.config, len(rows[0]), capacity)
    states, cache = functions.hidden(params, lm.config, rows[0], None, cache)
    return reader.logits(params, states[jnp.arange(len(rows[0])), rows[1] - 1]).reshape(
      -1, K, lm.config.vocab_size
    ), cache

  @jax.jit
  def step(params, logits_BKV, beams, cache, lengths_B, t, trie):
    beams, at_BK = extended(candidates(logits_BKV, beams, trie), K)
    rows = (take(jnp.arange(at_BK.size).reshape(at_BK.shape), at_BK // trie.fan_out)).reshape(-1)
    tokens, positions = beams.tokens(trie).reshape(-1, 1), jnp.repeat(lengths_B + t, K)[:, None]
    states, cache = functions.hidden(params, lm.config, tokens, positions, cache.reordered(rows))
    return reader.logits(params, states[:, 0]).reshape(logits_BKV.shape), beams, cache

  last = jax.jit(lambda logits, beams, trie: extended(candidates(logits, beams, trie), K)[0].nodes)
  if not hasattr(copies, 'programs'):
    copies.programs = read, step, last
  read, step, last = copies.programs
  seconds, items = 0.0, []
  for first in range(0, len(histories), config.batch):
    batch = histories[first : first + config.batch]
    tokens = np.zeros((len(batch), bucket(max(map(len, batch)))), np.int32)
    for row, history in zip(tokens, batch):
      row[: len(history)] = history
    start = time.perf_counter()
    tokens, lengths = jnp.asarray(tokens), jnp.asarray([len(h) for h in batch], jnp.int32)
    logits, cache = read(lm.params, tokens, lengths, capacity=tokens.shape[1] + 16)
    beams = Prefixes.roots(len(batch), K)
    for t in range(trie.depth - 1):
      logits, beams, cache = step(lm.params, logits, beams, cache, lengths, jnp.int32(t), trie)
    leaves = np.asarray(last(logits, beams, trie))
    seconds += time.perf_counter() - start
    items += [[i for leaf in trie.items(row) for i in leaf] for row in leaves]
  return seconds, items, None


def peer(config: Config, lm) -> Any:
  """Returns transformers' model with the weights."""
  import torch
  import transformers

  import jaxlm

  torch.set_num_threads(config.threads)
  with tempfile.TemporaryDirectory() as folder:
    jaxlm.save_huggingface(lm, Path(folder) / 'hf')
    model = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / 'hf', dtype=torch.float32).eval()
  model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
  return model


def transformers(config: Config, model, trie, histories) -> Found:
  """Searches with `generate(num_beams=K, prefix_allowed_tokens_fn=...)`; shorter histories of a batch are padded on the left."""
  import torch

  allowed = allowed_tokens(trie)
  seconds, items = 0.0, []
  leaves = np.flatnonzero(np.asarray(trie.item_count))
  of_id = dict(zip(map(tuple, trie.tokens(leaves).tolist()), trie.items(leaves)))
  for first in range(0, len(histories), config.batch):
    batch = histories[first : first + config.batch]
    width = max(map(len, batch))
    start = time.perf_counter()
    inputs = torch.tensor([[0] * (width - len(row)) + list(row) for row in batch])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
    with torch.inference_mode():
      out = model.generate(
        inputs, attention_mask=mask, num_beams=config.k, num_return_sequences=config.k, max_new_tokens=trie.depth,
        min_new_tokens=trie.depth, do_sample=False, length_penalty=0.0, pad_token_id=0,
        prefix_allowed_tokens_fn=lambda _, ids, width=width: allowed[tuple(ids[width:].tolist())],
      )  # fmt: skip
    seconds += time.perf_counter() - start
    rows = out[:, width:].reshape(len(batch), config.k, -1).tolist()
    items += [[i for ids in row for i in of_id[tuple(ids)]] for row in rows]
  return seconds, items, None


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
