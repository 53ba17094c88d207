"""Continues a few prompts with a language model, and measures how much the continuations repeat themselves."""

from collections.abc import Iterable, Sequence
from typing import Any

NGRAM = 4


def continuations(
  lm: Any, prompts: Sequence[str], directions: Iterable[str], max_new_tokens: int
) -> tuple[list[str], list[list[int]]]:
  """Returns (prompts with their continuations as text, the tokens of the continuations), for each of the directions.

  Texts are in reading order: a reverse continuation is before its prompt. The same model and prompts give the same samples.
  """
  import decoders
  from decoders.prompts import encode

  sampling = decoders.Sampling(temperature=0.8, top_k=40)
  shown, added = [], []
  for direction in directions:
    room = lm.config.max_length - max(map(len, encode(lm, prompts, direction)))
    n = min(max_new_tokens, room)
    out = decoders.generate(lm, prompts, max_new_tokens=n, sampling=sampling, seed=0, direction=direction)
    pairs = zip(prompts, out.text, strict=True)
    shown += [f'{p!r} -> {t}' if direction == 'forward' else f'{t} <- {p!r}' for p, t in pairs]
    added += [list(map(int, row[:length])) for row, length in zip(out.tokens, out.lengths, strict=True)]
  return shown, added


def repetition(rows: Iterable[Sequence[int]], n: int = NGRAM) -> float:
  """Returns the share of n-grams that occur earlier in the same row (https://arxiv.org/abs/1908.04319); 0 if there are none."""
  total = distinct = 0
  for row in rows:
    grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    total, distinct = total + len(grams), distinct + len(set(grams))
  return (total - distinct) / total if total else 0.0
