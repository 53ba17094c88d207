"""Identifiers of items from their features, so that similar items share the first codes of their identifiers.

  codes[:, l] = nearest centre of level l to r_l;   r_0 = features,   r_{l+1} = r_l - centre[codes[:, l]]

(residual k-means; `jaxlm.data.rqvae` learns the centres together with an encoder). Several items may get the same codes: `unique` adds
one more code that tells them apart, and `report` says how many there are, and how evenly the codes are used.

Letters: I items, D features, L levels, C codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxlm import errors

if TYPE_CHECKING:
  from jaxtyping import Float, Int

PADDING_WORD = '<end>'
"""Stands in a title's identifier after its last word."""


def distances(x: Float[np.ndarray, 'n D'], centres: Float[np.ndarray, 'C D']) -> Float[np.ndarray, 'n C']:
  """Returns squared distances."""
  return (x * x).sum(1)[:, None] - 2 * x @ centres.T + (centres * centres).sum(1)[None]


def kmeans(
  x: Float[np.ndarray, 'n D'], count: int, rng: np.random.Generator, iterations: int = 25
) -> tuple[Float[np.ndarray, 'C D'], Int[np.ndarray, ' n']]:
  """Returns (centres, the number of the nearest centre of each point); begins with k-means++, C = count.

  A centre without points moves to the point that is farthest from its own centre. Fewer points than centres leave some unused.
  """
  x = np.asarray(x, np.float64)
  chosen = [int(rng.integers(len(x)))]
  nearest = distances(x, x[chosen])[:, 0]
  for _ in range(count - 1):
    total = np.maximum(nearest, 0).sum()
    p = np.maximum(nearest, 0) / total if total > 0 else np.full(len(x), 1 / len(x))
    chosen.append(int(rng.choice(len(x), p=p)))
    nearest = np.minimum(nearest, distances(x, x[chosen[-1:]])[:, 0])
  centres = x[chosen].copy()
  for _ in range(iterations):
    d = distances(x, centres)
    code = d.argmin(1)
    counts = np.bincount(code, minlength=count)
    sums = np.zeros_like(centres)
    np.add.at(sums, code, x)
    centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    empty = np.flatnonzero(counts == 0)
    far = np.argsort(-d[np.arange(len(x)), code], kind='stable')[: len(empty)]
    centres[empty[: len(far)]] = x[far]
  return centres, distances(x, centres).argmin(1)


def residual_kmeans(
  vectors: Float[np.ndarray, 'I D'], sizes: Sequence[int] = (32, 32, 32), seed: int = 0, iterations: int = 25
) -> tuple[Int[np.ndarray, 'I L'], list[Float[np.ndarray, 'C D']]]:
  """Returns (codes, the centres of each level). `sizes`: number of codes of each level."""
  check_vectors(vectors)
  rng = np.random.default_rng(seed)
  rest, codes, centres = np.asarray(vectors, np.float64), [], []
  for size in sizes:
    centre, code = kmeans(rest, size, rng, iterations)
    rest = rest - centre[code]
    codes.append(code)
    centres.append(centre)
  return np.stack(codes, axis=1).astype(np.int32), centres


def check_vectors(vectors: np.ndarray) -> None:
  """Raises DataError unless each item has a vector of finite numbers."""
  vectors = np.asarray(vectors)
  if vectors.ndim != 2 or not len(vectors) or not vectors.shape[1]:
    raise errors.DataError(f'Feature vectors have the shape {vectors.shape}; expected [items, features].')
  bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
  if len(bad):
    raise errors.DataError(
      f'The feature vector of item {bad[0]} has a number that is not finite; {len(bad)} items are such.'
    )


def title_codes(titles: Sequence[str], words: int = 6) -> tuple[Int[np.ndarray, 'I L'], tuple[str, ...]]:
  """Returns (the words of each title as codes, the words that the codes mean).

  Titles are cut to `words` words, and shorter ones end with `PADDING_WORD`, which is code 0: all identifiers need the same length.
  """
  split = [title.split()[:words] for title in titles]
  empty = next((i for i, parts in enumerate(split) if not parts), None)
  if empty is not None:
    raise errors.DataError(f'Item {empty} has no title, so it has no identifier of title words.')
  names = (PADDING_WORD, *sorted({word for parts in split for word in parts}))
  number = {name: i for i, name in enumerate(names)}
  length = max(map(len, split))
  codes = np.zeros((len(titles), length), np.int32)
  for i, parts in enumerate(split):
    codes[i, : len(parts)] = [number[word] for word in parts]
  return codes, names


def group(codes: Int[np.ndarray, 'I L']) -> Int[np.ndarray, ' I']:
  """Returns a number for each item, equal for items with equal codes."""
  return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def unique(codes: Int[np.ndarray, 'I L'], popularity: Sequence[float] | None = None) -> Int[np.ndarray, 'I M']:
  """Returns codes that differ for all items, M = L + 1: the last one counts the items with the same codes, the most popular first.

  Without collisions, the codes are returned as they are, M = L.

  Args:
    codes: the codes.
    popularity: [I] numbers of training interactions; None: items are counted in their order.
  """
  of = group(codes)
  if np.bincount(of).max() == 1:
    return codes
  order = np.arange(len(codes)) if popularity is None else np.argsort(-np.asarray(popularity), kind='stable')
  order = order[np.argsort(of[order], kind='stable')]
  sizes = np.bincount(of)
  index = np.empty(len(codes), np.int32)
  index[order] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  return np.concatenate([codes, index[:, None]], axis=1)


@dataclasses.dataclass(frozen=True)
class RqVaeConfig:
  """How an RQ-VAE is trained."""

  hidden: tuple[int, ...] = (128, 64)
  """Widths of the encoder's hidden layers; the decoder has them in reverse order."""
  width: int = 32
  """Width of the vector that is quantised."""
  steps: int = 1000
  """Number of training steps."""
  batch_size: int = 1024
  """Number of items per step."""
  learning_rate: float = 1e-3
  """Learning rate of Adam."""
  commitment: float = 0.25
  """Weight of the term that pulls the encoder's outputs towards their codes."""
  reset_every: int = 100
  """Number of steps after which codes that no item used are set to the outputs of random items (0: never)."""
  sinkhorn: float = 0.003
  """Temperature of Sinkhorn's algorithm at the last level; distances are divided by the largest one before (0: nearest codes, also for items that share
  their codes at the end)."""
  sinkhorn_iterations: int = 30
  """Number of its iterations."""

  def __post_init__(self):
    for name in ('width', 'steps', 'batch_size', 'sinkhorn_iterations'):
      if getattr(self, name) < 1:
        raise ValueError(f'rqvae.{name}={getattr(self, name)} must be at least 1.')
    for name in ('commitment', 'reset_every', 'sinkhorn'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'rqvae.{name}={getattr(self, name)} must not be negative.')
    if not self.learning_rate > 0 or any(width < 1 for width in self.hidden):
      raise ValueError(f'rqvae.learning_rate={self.learning_rate} and rqvae.hidden={self.hidden} must be positive.')


@dataclasses.dataclass(frozen=True)
class IdReport:
  """How good identifiers are.

  Attributes:
    items: number of items.
    used: number of different codes of each level.
    entropy: entropy of the codes of each level in bits; log2 of `used` if all are used equally.
    nodes: number of different prefixes of each length.
    fan_out: largest number of continuations of a prefix, of each length from 0.
    sharing: items that have the identifier of another one.
    surplus: items that are too many: items minus identifiers.
  """

  items: int
  used: tuple[int, ...]
  entropy: tuple[float, ...]
  nodes: tuple[int, ...]
  fan_out: tuple[int, ...]
  sharing: int
  surplus: int

  def __str__(self) -> str:
    numbers = lambda xs: ' / '.join(f'{x:,}' if isinstance(x, int) else f'{x:.2f}' for x in xs)
    return (
      f'{self.items:,} items; codes used {numbers(self.used)}, entropy {numbers(self.entropy)} bits; prefixes {numbers(self.nodes)}, at '
      f'most {numbers(self.fan_out)} continuations; {self.sharing:,} items share an identifier ({self.surplus:,} surplus)'
    )


def report(codes: Int[np.ndarray, 'I L']) -> IdReport:
  """Returns how many codes are used, and how many items share an identifier."""
  levels = codes.shape[1]
  counts = [np.unique(codes[:, l], return_counts=True)[1] for l in range(levels)]
  entropy = tuple(float(-(c / c.sum() * np.log2(c / c.sum())).sum() + 0.0) for c in counts)
  before, nodes, fan_out = np.zeros(len(codes), np.int64), [], []
  for l in range(levels):
    _, first, here = np.unique(np.stack([before, codes[:, l]], 1), axis=0, return_index=True, return_inverse=True)
    fan_out.append(int(np.bincount(before[first]).max()))
    before = here.reshape(-1)
    nodes.append(len(first))
  sizes = np.bincount(before)
  shared = int(sizes[sizes > 1].sum())
  return IdReport(
    len(codes), tuple(len(c) for c in counts), entropy, tuple(nodes), tuple(fan_out), shared, len(codes) - nodes[-1]
  )
