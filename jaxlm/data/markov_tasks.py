"""Generated translation tasks whose need of target history is known: how many earlier target tokens a decoder has to see.

The source does not say everything: some target words carry a class that is drawn at random, and a later word has to have the same one.
A decoder of order k, which sees k earlier target tokens, can do so if and only if the class lies within its window. From section 6 of
the specification of Markov autoregressive translation (https://arxiv.org/abs/2402.02084); the tasks are ours.

  Agreement  `pick` becomes P and a class, and `same`, which follows g words later, S and that class: needs order g, and no less.
  Clauses    such couples of distance 2 in clauses of 7 words, of which there may be many. Drawn for each clause, order 2 is enough
             however long the sentence; drawn once for the sentence (`shared`), each later clause needs order 5.
  Rotation   the target is the source's words from a random place on, then those before it: as many orders as words.
"""

import dataclasses
import random

from jaxlm.data.synthetic import Language, draw_index, permuted


@dataclasses.dataclass(frozen=True)
class Words(Language):
  """Sources of the words w0, w1, ..., each of which one target word W translates."""

  words: int = 100
  """Number of ordinary words."""
  classes: int = 4
  """Number of classes that are drawn from: guessing is right once in so many times."""

  def __post_init__(self):
    super().__post_init__()
    if self.words < 2 or self.classes < 2:
      raise ValueError(f'{self.words=} and {self.classes=} must be at least 2.')
    object.__setattr__(self, '_numbers', permuted(self.seed, 'w', self.words))

  def draw_words(self, rng: random.Random, n: int) -> list[str]:
    return [f'w{draw_index(rng, self.words)}' for _ in range(n)]

  def translate(self, word: str) -> str:
    """Returns the target word of an ordinary one. Raises ValueError for any other."""
    number = word.removeprefix('w')
    if not number.isdecimal() or int(number) >= self.words or word != f'w{int(number)}':
      raise ValueError(f'{word!r} is no word of this language: expected w0 ... w{self.words - 1}.')
    return f'W{self._numbers[int(number)]}'

  def with_classes(self, source: str, classes: list[int]) -> str:
    """Returns the target in which the couples of `pick` and `same` have these classes, one after the other."""
    couples = {mark: iter(classes) for mark in ('pick', 'same')}
    mark = lambda word: f'{word[0].upper()}{next(couples[word])}'
    target = [w if w == ',' else mark(w) if w in couples else self.translate(w) for w in source.split()]
    return ' '.join(target)


@dataclasses.dataclass(frozen=True)
class Agreement(Words):
  """One couple of `pick` and `same` in each sentence, `distance` words apart. The classes are the only random part of a target."""

  distance: int = 4
  """How many words `same` comes after `pick`: the order that the task needs."""

  def __post_init__(self):
    super().__post_init__()
    if self.distance < 1:
      raise ValueError(f'{self.distance=} must be at least 1.')

  def draw(self, rng: random.Random) -> tuple[str, str]:
    before, after = draw_index(rng, 4), draw_index(rng, 4)
    words = self.draw_words(rng, before + self.distance - 1 + after + 1)
    middle = before + self.distance - 1
    source = ' '.join([*words[:before], 'pick', *words[before:middle], 'same', *words[middle:]])
    return source, self.with_classes(source, [draw_index(rng, self.classes)])

  def agreeing(self, source: str) -> int:
    """Returns the position of the word in the target that has to agree. Raises ValueError for a source without the couple."""
    words = source.split()
    if (
      words.count('pick') != 1 or words.count('same') != 1 or words.index('same') - words.index('pick') != self.distance
    ):
      raise ValueError(f'{source!r} needs one `pick` and, {self.distance} words later, one `same`.')
    return words.index('same')

  def targets(self, source: str) -> dict[str, float]:
    self.agreeing(source)
    return {self.with_classes(source, [c]): 1 / self.classes for c in range(self.classes)}


@dataclasses.dataclass(frozen=True)
class Clauses(Words):
  """Clauses `pick w same w w w ,`. A target's classes are drawn for each clause, or once where they are `shared`."""

  shared: bool = False
  """Whether all clauses of a sentence have the same class."""
  most: int = 6
  """Number of clauses in the longest sentence."""

  def __post_init__(self):
    super().__post_init__()
    if self.most < 1:
      raise ValueError(f'{self.most=} must be at least 1.')

  def _classes(self, drawn: list[int], clauses: int) -> list[int]:
    return drawn * clauses if self.shared else drawn

  def draw(self, rng: random.Random) -> tuple[str, str]:
    clauses = 1 + draw_index(rng, self.most)
    parts = []
    for _ in range(clauses):
      first, *rest = self.draw_words(rng, 4)
      parts += ['pick', first, 'same', *rest, ',']
    source = ' '.join(parts)
    drawn = [draw_index(rng, self.classes) for _ in range(1 if self.shared else clauses)]
    return source, self.with_classes(source, self._classes(drawn, clauses))

  def _clauses(self, source: str) -> int:
    words = source.split()
    marks = [w if w in ('pick', 'same', ',') else 'w' for w in words]
    clauses = len(words) // 7
    if not clauses or marks != ['pick', 'w', 'same', 'w', 'w', 'w', ','] * clauses:
      raise ValueError(f'{source!r} is not made of clauses `pick w same w w w ,`.')
    return clauses

  def is_valid(self, source: str, hypothesis: str) -> bool:
    # Listing them would take classes ** clauses targets.
    clauses, words = self._clauses(source), hypothesis.split()
    classes = [word[1:] for word in words[::7]]
    if not all(c.isdecimal() and int(c) < self.classes for c in classes) or len(classes) != clauses:
      return False
    if self.shared and len(set(classes)) > 1:
      return False
    return ' '.join(words) == self.with_classes(source, list(map(int, classes)))

  def targets(self, source: str) -> dict[str, float]:
    clauses = self._clauses(source)
    free = 1 if self.shared else clauses
    n = self.classes**free
    digits = ([number // self.classes**place % self.classes for place in range(free)] for number in range(n))
    return {self.with_classes(source, self._classes(drawn, clauses)): 1 / n for drawn in digits}


@dataclasses.dataclass(frozen=True)
class Rotation(Words):
  """The words of a target are those of its source, beginning at a random place and going round."""

  longest: int = 12
  """Number of words in the longest sentence; the shortest has 4."""

  def __post_init__(self):
    super().__post_init__()
    if self.longest < 4:
      raise ValueError(f'{self.longest=} must be at least 4.')

  def draw(self, rng: random.Random) -> tuple[str, str]:
    words = self.draw_words(rng, 4 + draw_index(rng, self.longest - 3))
    start = draw_index(rng, len(words))
    return ' '.join(words), ' '.join(map(self.translate, words[start:] + words[:start]))

  def targets(self, source: str) -> dict[str, float]:
    words = list(map(self.translate, source.split()))
    found: dict[str, float] = {}
    for start in range(len(words)):
      target = ' '.join(words[start:] + words[:start])
      found[target] = found.get(target, 0) + 1 / len(words)  # Words that occur again may make two rotations one text.
    return found
