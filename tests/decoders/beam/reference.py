"""Beam search and exhaustive search, slow and plain, and a model that is a table."""

import dataclasses
import functools
import itertools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

V, EOS, PAD = 5, 2, 0


@struct.dataclass
class History:
  """The latest ids of each row, which the table is read by."""

  ids: jax.Array  # [R, k] int32

  def reordered(self, index_R):
    return History(self.ids[index_R])


@dataclasses.dataclass(frozen=True)
class TableStep:
  """Logits from a table by source, position and the last k ids, as `decoders.beam.search.Step`; the context is the table."""

  order: int

  def __call__(self, table, tokens_R, positions_R, history):
    ids_RK = jnp.concatenate([history.ids[:, 1:], tokens_R[:, None]], axis=1)
    source_R = jnp.arange(len(tokens_R)) // (len(tokens_R) // len(table))
    return table[(source_R, positions_R, *ids_RK.T)], History(ids_RK)


def random_table(order: int, sources: int, length: int, seed: int = 0, scale: float = 1.5) -> np.ndarray:
  """Returns logits by source, position and the last `order` ids."""
  shape = (sources, length, *(V,) * order, V)
  return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def table_log_p(table: np.ndarray, source: int, start: int = 1):
  """Returns prefix -> log-probabilities of the next id."""
  order = table.ndim - 3
  log_p = np.asarray(jax.nn.log_softmax(table, axis=-1), np.float64)

  @functools.cache
  def of(prefix: tuple[int, ...]) -> np.ndarray:
    ids = ((0,) * order + (start,) + prefix)[-order:]
    return log_p[(source, len(prefix), *ids)]

  return of


def score(log_p, ids: tuple[int, ...], penalty: float) -> float:
  return sum(log_p(ids[:n])[ids[n]] for n in range(len(ids))) / len(ids) ** penalty


def exhaustive(log_p, limit: int, penalty: float, least: int = 0) -> list[tuple[float, tuple[int, ...]]]:
  """Returns (score, ids) of every hypothesis, best first: those that end in EOS, and those of the greatest length."""
  inner = [v for v in range(V) if v not in (EOS, PAD)]
  found = [ids for ids in itertools.product(inner, repeat=limit)]
  for n in range(least, limit):
    found += [(*ids, EOS) for ids in itertools.product(inner, repeat=n)]
  return sorted(((score(log_p, ids, penalty), ids) for ids in found), reverse=True)


def beam_search(log_p, limit: int, width: int, penalty: float, early, least: int = 0):
  """Returns (score, ids) of at most `width` hypotheses, best first, as transformers searches."""
  running, kept = [(0.0, ())], []
  for n in range(1, limit + 1):
    candidates = []
    for total, ids in running:
      for v in range(V):
        if v != PAD and not (v == EOS and n <= least):
          candidates.append((total + log_p(ids)[v], (*ids, v)))
    candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * width]
    ended = [c[1][-1] == EOS or n == limit for c in candidates]
    new = [(total / n**penalty, ids) for (total, ids), end in zip(candidates[:width], ended) if end]
    kept = sorted(kept + new, key=lambda c: -c[0])[:width]
    running = [c for c, end in zip(candidates, ended) if not end][:width]
    if not running:
      break
    if len(kept) == width:
      longest = limit if early == 'never' and penalty > 0 else n
      if early is True or running[0][0] / longest**penalty <= kept[-1][0]:
        break
  return kept
