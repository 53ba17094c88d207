"""Quality of SmolLM2 with cut caches: retrieval of pass keys and facts from long text, and perplexity after it.

A text is read with a full cache, and so is the question after it. Each method then cuts the cache of the text, and the question is
read again with the cut cache. Lazy ratios and votes come from the question's last tokens, as in the authors' decode variant, or
(`asked=False`) from the last tokens of the text, which is then cut before the question is known, as in kvpress.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import kv_cache_methods as km
from decoders.simlayerkv.config import LazyConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import Transformer

NAMES = 'Alice Bob Carol David Emma Frank Grace Henry Karen Jack'.split()
CITIES = 'Paris London Berlin Rome Madrid Vienna Tokyo Cairo Moscow Sydney Boston Dublin'.split()
FACTS = 4
CONTINUED = 64  # Number of tokens in a question with its answer, padded, and in a continuation.


@dataclasses.dataclass(frozen=True)
class Question:
  """Token ids. With `others` the answer must be likelier than these; otherwise it must be the output of greedy decoding."""

  task: str
  text: list[int]
  question: list[int]
  answer: list[int]
  others: tuple[list[int], ...] = ()


def questions(lm: LanguageModel, text: list[int], length: int, count: int, seed: int) -> Iterator[Question]:
  """Yields a pass-key task and a fact task for each of `count` texts of `length` tokens."""
  rng, encode = np.random.default_rng(seed), lambda t: lm.tokenizer.encode(t, bos=False)
  for i in range(count):
    start = int(rng.integers(0, len(text) - length - 1))
    filler, key = text[start : start + length], str(rng.integers(10000, 99999))
    needle = encode(f'\n\nThe pass key is {key}. Remember it. {key} is the pass key.\n\n')
    hidden = scattered(filler, [((i + 0.5) / count, needle)], length)
    yield Question('pass key', hidden, encode('\n\nThe pass key is'), encode(f' {key}'))
    names, cities = rng.permutation(NAMES)[:FACTS], rng.permutation(CITIES)[:FACTS]
    facts = [encode(f'\n\n{name} lives in {city}. {name} likes {city}.\n\n') for name, city in zip(names, cities)]
    hidden = scattered(filler, [((j + 0.5) / FACTS, fact) for j, fact in enumerate(facts)], length)
    answer, *others = np.roll(
      [encode(f' {city}')[0] for city in cities], -(asked := int(rng.integers(0, FACTS)))
    ).tolist()
    question = encode(f'\n\n{names[asked]} lives in')
    yield Question('facts', hidden, question, [answer], tuple([other] for other in others))


def scattered(filler: list[int], pieces: list[tuple[float, list[int]]], length: int) -> list[int]:
  """Returns `length` tokens of filler with pieces inserted at these depths."""
  room = length - sum(len(piece) for _, piece in pieces)
  out, at = [], 0
  for depth, piece in pieces:
    to = int(depth * room)
    out += filler[at:to] + piece
    at = to
  return out + filler[at:room]


@functools.partial(jax.jit, static_argnames='config')
def forced(params, tokens_BT, start_B, cache, *, config):
  """Returns float32 logits [B, T, V] after each token of a continuation; the cache does not change."""
  positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
  return Transformer(config).apply({'params': params}, tokens_BT, positions_BT, cache, start_B + 10**6)[0]


def answered(logits_TV: np.ndarray, q: Question) -> bool:
  """Returns whether the answer is right; the logits are those after each token of question and answer."""
  logits_AV = logits_TV[len(q.question) - 1 :][: len(q.answer)]
  if q.others:
    return all(logits_AV[0, q.answer[0]] > logits_AV[0, other[0]] for other in q.others)
  return bool((logits_AV.argmax(axis=-1) == q.answer).all())


def scores(
  lm: LanguageModel,
  text: list[int],
  length: int,
  lazy: LazyConfig,
  numbers: Sequence[int],
  count: int,
  seed: int,
  asked: bool = True,
) -> tuple[list[dict], dict[str, list[list[int]]]]:
  """Returns (one row per method and number of lazy layers: bytes, accuracies, perplexity; the lazy layers of prompts)."""
  room, lazy = 2 * CONTINUED, lazy.replace(stage='prefill')
  alike = {'full': 0, 'full, 4 bits': 0, 'all lazy': lm.config.num_layers}  # whatever the number
  points = {(m.name, alike.get(m.name, n)): m for n in numbers for m in km.methods(lm, length, lazy, n)}
  measured: dict[tuple[str, int], dict[str, list[float]]] = {point: {} for point in points}
  held, lazy_sets = {}, {str(n): [] for n in numbers}

  def cuts(prompt: km.Read):
    rng = np.random.default_rng(len(lazy_sets[str(numbers[0])]))
    for (name, n), method in points.items():
      lazy_L = km.cut_layers(method, lm, prompt, rng)
      if name == 'lazy':
        lazy_sets[str(n)].append(np.flatnonzero(lazy_L).tolist())
      held[name, n] = km.formula_bytes(method, lm, length, lazy_L)
      yield measured[name, n], km.cut(method, lm, prompt, lazy_L).cache

  def logits(tokens, cache):
    padded = jnp.asarray([tokens + [0] * (CONTINUED - len(tokens))])
    return forced(lm.params, padded, jnp.asarray([length]), cache, config=lm.config)[0]

  for q in questions(lm, text, length, count, seed):
    prompt = km.read(lm, q.text, lazy, room, question=q.question if asked else [])
    for found, cache in cuts(prompt):
      found.setdefault(q.task, []).append(answered(np.asarray(logits(q.question + q.answer, cache)), q))
  rng = np.random.default_rng(seed + 1)
  for _ in range(count):
    start = int(rng.integers(0, len(text) - length - CONTINUED))
    ids, after = text[start : start + length], text[start + length : start + length + CONTINUED]
    prompt = km.read(lm, ids, lazy, room)
    for found, cache in cuts(prompt):
      log_p = jax.nn.log_softmax(jnp.concatenate([prompt.logits, logits(after, cache)[:-1]]))
      found.setdefault('nll', []).append(float(-log_p[jnp.arange(CONTINUED), jnp.asarray(after)].mean()))
  rows = []
  for (name, n), found in measured.items():
    times = held['full', 0] / held[name, n]
    row = {'tokens': length, 'cache': name, 'lazy layers': n, 'MB': held[name, n] / 1e6, 'times smaller': times}
    row |= {task: float(np.mean(found[task])) for task in ('pass key', 'facts')}
    rows.append(row | {'perplexity': float(np.exp(np.mean(found['nll'])))})
  return rows, lazy_sets
