"""Endless text from a probabilistic grammar with copies, for language models that must not see data twice."""

import dataclasses

import numpy as np


def procedural_text(rng: np.random.Generator, rows: int, length: int, vocab: int, categories: int = 16) -> np.ndarray:
  """Returns int32 [rows, length] of a probabilistic grammar with copies; id 0 is never drawn.

  The category of a word follows from that of the last word by a fixed Markov chain. Within the category, the word has a
  Zipf-distributed rank in an order that depends on the last word. With probability 1/32 a span begins that repeats 8 to 23 words
  from an earlier place of the row. All rows are drawn at once, so that a GPU does not wait for text.
  """
  size = (vocab - 1) // categories
  fixed = np.random.default_rng(0)  # The grammar is the same for every seed.
  chain_CC = fixed.dirichlet(np.full(categories, 0.3), categories).cumsum(axis=1)
  turn_V = fixed.integers(0, size, vocab)
  text_TR = np.zeros((length, rows), np.int32)
  left_R, source_R, all_R = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.arange(rows)
  last_R = 1 + rng.integers(0, size * categories, rows)
  for t in range(length):
    category_u, rank_u, span_u, place_u, length_u = rng.random((5, rows))
    category_R = (category_u[:, None] > chain_CC[(last_R - 1) // size]).sum(axis=1).clip(max=categories - 1)
    rank_R = (size + 1) ** rank_u - 1
    word_R = 1 + category_R * size + (rank_R.astype(np.int64) + turn_V[last_R]) % size
    begins_R = (left_R == 0) & (span_u < 1 / 32) & (t >= 32)
    left_R = np.where(begins_R, 8 + (16 * length_u).astype(np.int64), left_R)
    source_R = np.where(begins_R, (place_u * (t - 24)).astype(np.int64), source_R)
    last_R = np.where(left_R > 0, text_TR[source_R, all_R], word_R)
    text_TR[t] = last_R
    left_R, source_R = np.maximum(left_R - 1, 0), source_R + 1
  return np.ascontiguousarray(text_TR.T)


@dataclasses.dataclass
class ProceduralBatches:
  """Endless batches without repetition. Like `jaxlm.data.packing.Batches`, a batch is a function of (seed, step)."""

  vocab: int
  batch_size: int
  length: int
  seed: tuple[int, ...]
  at_once: int = 32  # steps drawn together

  def batch(self, step: int) -> dict[str, np.ndarray]:
    part = step // self.at_once
    if getattr(self, '_part', None) != part:
      rng = np.random.default_rng((*self.seed, part))
      self._rows = procedural_text(rng, self.at_once * self.batch_size, self.length + 1, self.vocab)
      self._rows[:, 0] = 0  # The fixed first token.
      self._part = part
    first = step % self.at_once * self.batch_size
    rows = self._rows[first : first + self.batch_size]
    return {'tokens': rows[:, :-1], 'targets': rows[:, 1:], 'mask': np.ones(rows[:, 1:].shape, np.float32)}
