"""What cutting a cache costs SmolLM2: pass keys and key-value pairs found again in long text, and perplexity after it.

The text is read with a full cache, which each method then cuts; the question comes afterwards. An answer counts if every
one of its tokens is the likeliest, which is when greedy decoding says it.
"""

from collections.abc import Iterator
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import kv_cache_methods as km
from decoders.lazy import LazyConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import Transformer

WORDS = (
  'apple river castle window garden silver planet bridge candle forest mirror pocket rocket saddle ticket valley anchor '
  'button copper desert engine feather guitar hammer island jacket kettle ladder magnet needle'
).split()
ANSWER = 48  # Tokens of a question and its answer, padded.


@functools.partial(jax.jit, static_argnames='config')
def forced(params, tokens_BT, start_B, cache, *, config):
  """Returns float32 logits [B, T, V] after each token of a continuation; the cache stays as it is."""
  positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
  return Transformer(config).apply({'params': params}, tokens_BT, positions_BT, cache, start_B + 10**6)[0]


def questions(
  lm: LanguageModel, text: list[int], length: int, count: int, seed: int
) -> Iterator[tuple[str, list, list, list]]:
  """Yields (task, context, question, answer), as token ids; contexts are of `length` tokens."""
  rng, encode = np.random.default_rng(seed), lambda t: lm.tokenizer.encode(t, bos=False)
  for i in range(count):
    start = int(rng.integers(0, len(text) - length - 1))
    filler, key = text[start : start + length], str(rng.integers(10000, 99999))
    depth = (i + 0.5) / count
    needle = encode(f'\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n')
    yield 'pass key', scattered(filler, [(depth, needle)], length), encode('\n\nThe pass key is'), encode(f' {key}')
    words, codes = rng.permutation(WORDS)[:12], rng.integers(100, 999, 12)
    pairs = [encode(f'\n\nThe code of the {w} is {c}.\n\n') for w, c in zip(words, codes)]
    context = scattered(filler, [((j + 0.5) / 12, pair) for j, pair in enumerate(pairs)], length)
    asked = int(rng.integers(0, 12))
    yield 'key-value', context, encode(f'\n\nThe code of the {words[asked]} is'), encode(f' {codes[asked]}')


def scattered(filler: list[int], pieces: list[tuple[float, list[int]]], length: int) -> list[int]:
  """Returns filler with pieces put in at these depths, `length` tokens in all."""
  room = length - sum(len(piece) for _, piece in pieces)
  out, at = [], 0
  for depth, piece in pieces:
    to = int(depth * room)
    out += filler[at:to] + piece
    at = to
  return out + filler[at:room]


def scores(
  lm: LanguageModel, text: list[int], length: int, lazy: LazyConfig, n_lazy: int, count: int, seed: int
) -> tuple[list[dict], list[list[int]]]:
  """Returns (one row per method: bytes, accuracies, perplexity; the lazy layers of each prompt)."""
  methods = km.methods(lm, length, lazy, n_lazy)
  room, continued = 256, 256
  hits: dict[str, dict[str, list[float]]] = {m.name: {} for m in methods}
  held, lazy_sets = {}, []

  def contexts(ids):
    prompt = km.read(lm, ids, lazy.replace(stage='prefill'), room)
    rng = np.random.default_rng(len(lazy_sets))
    for method in methods:
      lazy_L = km.cut_layers(method, lm, prompt, rng)
      if method.name == 'lazy':
        lazy_sets.append(np.flatnonzero(lazy_L).tolist())
      context = km.cut(method, lm, prompt, lazy_L)
      held[method.name] = km.formula_bytes(method, lm, length, lazy_L)
      yield method.name, prompt, context.cache

  def logits(tokens, width, cache):
    padded = jnp.asarray([tokens + [0] * (width - len(tokens))])
    return forced(lm.params, padded, jnp.asarray([length]), cache, config=lm.config)[0]

  for task, ids, question, answer in questions(lm, text, length, count, seed):
    for name, _, cache in contexts(ids):
      said = np.asarray(logits(question + answer, ANSWER, cache)[len(question) - 1 :].argmax(axis=-1))[: len(answer)]
      hits[name].setdefault(task, []).append(float((said == np.array(answer)).all()))
  rng = np.random.default_rng(seed + 1)
  for _ in range(max(2, count // 4)):
    start = int(rng.integers(0, len(text) - length - continued))
    ids, after = text[start : start + length], text[start + length : start + length + continued]
    for name, prompt, cache in contexts(ids):
      log_p = jax.nn.log_softmax(jnp.concatenate([prompt.logits, logits(after, continued, cache)[:-1]]))
      nll = -log_p[jnp.arange(continued), jnp.asarray(after)].mean()
      hits[name].setdefault('nll', []).append(float(nll))
  rows = []
  for name, by_task in hits.items():
    row = {'tokens': length, 'cache': name, 'MB': held[name] / 1e6, 'times smaller': held['full'] / held[name]}
    row |= {task: float(np.mean(values)) for task, values in by_task.items() if task != 'nll'}
    rows.append(row | {'perplexity': float(np.exp(np.mean(by_task['nll'])))})
  return rows, lazy_sets
