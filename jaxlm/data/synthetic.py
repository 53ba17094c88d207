"""What all generated languages of sentence pairs share: a pair is a pure function of (seed, split, index), so there are no files.

The splits have no source in common: a hash of the source says which split it belongs to, and pair i of a split is drawn again until its
source belongs there.
"""

import abc
from collections.abc import Iterator
import dataclasses
import random
from typing import Any

from jaxlm import errors
from jaxlm.data import pair_splits

SIZES = {'train': 20000, 'valid': 500, 'test': 500}
"""Pairs of each split."""
HELD_OUT = 1 / 16
"""Part of all sources in `valid`, and in `test`."""
TRIES = 2000
"""Draws for a pair: that none of so many belongs to a split happens only where a language has very few sources."""


def draw_index(rng: random.Random, n: int) -> int:
  """Returns a number from 0 to n - 1. Unlike `randrange`, it is the same in every version of Python."""
  return int(rng.random() * n)


@dataclasses.dataclass(frozen=True)
class Language(abc.ABC):
  """Generated sentence pairs whose valid translations are known. Texts are words with a space between."""

  seed: int = 0
  """Seed of the pairs, and of which target word translates which source word."""
  split: str = 'train'
  """train, valid or test."""

  def __post_init__(self):
    if self.split not in SIZES:
      raise errors.unknown('split', self.split, SIZES)

  @abc.abstractmethod
  def draw(self, rng: random.Random) -> tuple[str, str]:
    """Returns a random (source, target)."""

  @abc.abstractmethod
  def targets(self, source: str) -> dict[str, float]:
    """Returns every valid translation of a source with its probability; they add up to 1. Raises ValueError for another text."""

  def is_valid(self, source: str, hypothesis: str) -> bool:
    """Returns whether a text is a translation of a source. Raises ValueError for a source that is not of this language."""
    return ' '.join(hypothesis.split()) in self.targets(source)

  def __len__(self) -> int:
    return SIZES[self.split]

  def pair(self, index: int) -> tuple[str, str]:
    """Returns (source, target) number `index` of the split. Raises ValueError where hardly any source belongs to the split."""
    # Seeding with a text hashes it, the same everywhere; seeding with numbers would make neighbours alike.
    rng = random.Random(f'{type(self).__name__} {self.seed} {self.split} {index}')
    for _ in range(TRIES):
      source, target = self.draw(rng)
      if pair_splits.split_of(source, HELD_OUT) == self.split:
        return source, target
    raise ValueError(
      f'None of {TRIES} sources drawn belongs to the split {self.split!r}: this language has too few. Give it more words.'
    )

  def __iter__(self) -> Iterator[tuple[str, str]]:
    return map(self.pair, range(len(self)))

  def facts(self) -> list[Any]:
    """Returns what the pairs depend on."""
    return [type(self).__name__, dataclasses.asdict(self), len(self)]


def permuted(seed: int, kind: str, n: int) -> list[int]:
  """Returns a permutation of 0 ... n - 1 that depends on the seed and on the kind of word."""
  rng = random.Random(f'lexicon {seed} {kind}')
  return sorted(range(n), key=lambda _: rng.random())
