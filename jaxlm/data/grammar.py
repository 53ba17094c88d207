"""A grammar of sentence pairs whose translations are all known, and the names of all generated languages.

  source:  S -> NP VP     NP -> (DT) RB* JJ* N     VP -> V (NP) RB*

A target translates word for word and then differs from the source where independent coins say so: in the order of NP and VP, in the
place of the adverbs within VP, in whether an NP has a determiner, and in which of two synonyms a word becomes. Some nouns become a
fixed phrase of two or three words. With all translations known, whether a hypothesis is one, and in which order, is exact.
In the spirit of https://arxiv.org/abs/2207.04206, which studies with such a grammar how non-autoregressive models learn several orders.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import itertools
import math
import random
import re
from typing import Any, Literal, NamedTuple

from jaxlm import errors
from jaxlm.data.markov_tasks import Agreement, Clauses, Rotation
from jaxlm.data.synthetic import SIZES, Language, draw_index, permuted

Order = Literal['NP VP', 'VP NP']
Place = Literal['last', 'middle', 'first']
"""Where the adverbs of VP are: after the object as in the source, after the verb, or before the verb."""
KINDS = 'nvjrd'
"""What source words begin with: noun, verb, adjective, adverb, determiner; target words with the capital."""
_SENTENCE = re.compile('(d?r*j*n)(v)((?:d?r*j*n)?)(r*)')
"""The kinds of a source's words: NP, the verb, another NP or nothing, and the adverbs of VP."""


class Form(NamedTuple):
  """What the coins of a sentence say, except for the synonyms."""

  order: Order
  place: Place
  flipped: tuple[bool, ...]
  """Whether a determiner was left out or added, for each NP in the order of the source."""


class _Parse(NamedTuple):
  """Words of a source."""

  phrases: list[list[str]]
  """Its one or two NPs."""
  verb: str
  adverbs: list[str]


Choice = dict[str, float]
"""Target words that may stand at one position, with their probabilities."""


@dataclasses.dataclass(frozen=True)
class Phrases(Language):
  """The grammar. Probabilities of 0 and 1 make a coin certain, and what it can then not say is not a translation."""

  nouns: int = 400
  verbs: int = 200
  adjectives: int = 100
  adverbs: int = 60
  determiners: int = 3
  p_long: float = 0.5
  """Probability of the source's order, NP before VP."""
  p_short: float = 0.5
  """Probability that the adverbs of VP stay last; the other two places share the rest. Without adverbs there is no choice."""
  p_opt: float = 0.1
  """Probability, for each NP, that a determiner is left out, or that the first one is added where there is none."""
  p_lex: float = 0.1
  """Probability, for each word that has a synonym, that the target has the synonym."""
  p_idiom: float = 0.1
  """Part of the nouns that become a phrase of two or three words, always in the same order."""
  synonyms: float = 0.2
  """Part of the nouns, verbs, adjectives and adverbs that have a synonym."""
  shortest: int = 4
  longest: int = 18
  """Number of words of the shortest and of the longest source."""

  def __post_init__(self):
    super().__post_init__()
    for name in ('p_long', 'p_short', 'p_opt', 'p_lex', 'p_idiom', 'synonyms'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)} must lie between 0 and 1.')
    if self.p_idiom + self.synonyms > 1:
      raise ValueError(f'{self.p_idiom=} and {self.synonyms=} add up to more than 1: no noun is both.')
    if min(self._sizes.values()) < 1:
      raise ValueError(f'Each kind of word needs at least 1: {self._sizes}.')
    if not 2 <= self.shortest <= self.longest or self.shortest > 18:
      raise ValueError(f'{self.shortest=} and {self.longest=} must be in order, with shortest from 2 to 18.')
    object.__setattr__(self, '_numbers', {kind: permuted(self.seed, kind, n) for kind, n in self._sizes.items()})

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(zip(KINDS, (self.nouns, self.verbs, self.adjectives, self.adverbs, self.determiners)))

  # ---- sources ----

  def _source(self, rng: random.Random) -> str:
    word = lambda kind: f'{kind}{draw_index(rng, self._sizes[kind])}'
    several = lambda kind, most: [word(kind) for _ in range(draw_index(rng, most + 1))]
    phrase = lambda: [*several('d', 1), *several('r', 2), *several('j', 3), word('n')]
    while True:
      words = [*phrase(), word('v'), *(phrase() if rng.random() < 0.7 else []), *several('r', 3)]
      if self.shortest <= len(words) <= self.longest:
        return ' '.join(words)

  def _parse(self, source: str) -> _Parse:
    words = source.split()
    found = _SENTENCE.fullmatch(''.join(word[0] for word in words))
    if found is None or not all(map(self._known, words)):
      raise ValueError(f'{source!r} is not a sentence of this grammar.')
    subject, verb, what, adverbs = (words[slice(*found.span(i))] for i in range(1, 5))
    return _Parse([subject, what] if what else [subject], verb[0], adverbs)

  def _known(self, word: str) -> bool:
    number = word[1:]
    return number.isdecimal() and word == f'{word[0]}{int(number)}' and int(number) < self._sizes.get(word[0], 0)

  # ---- targets ----

  def _word(self, word: str) -> list[Choice]:
    """Returns what a source word becomes: one position with its choices, or the positions of an idiom."""
    kind, number = word[0], int(word[1:])
    size, target = self._sizes[kind], f'{kind.upper()}{self._numbers[kind][number]}'
    if kind == 'n' and number >= size - round(self.p_idiom * size):
      return [{f'{target}{part}': 1.0} for part in 'abc'[: 2 + number % 2]]
    if kind != 'd' and number < round(self.synonyms * size):
      return [{w: p for w, p in ((target, 1 - self.p_lex), (f'{target}s', self.p_lex)) if p}]
    return [{target: 1.0}]

  def _phrase(self, phrase: list[str], flipped: bool) -> list[Choice]:
    if flipped:
      phrase = phrase[1:] if phrase[0][0] == 'd' else ['d0', *phrase]
    return [choice for word in phrase for choice in self._word(word)]

  def _forms(self, parse: _Parse) -> Iterator[tuple[float, Form]]:
    """Yields (its probability, form) for all forms that are possible."""
    orders = {'NP VP': self.p_long, 'VP NP': 1 - self.p_long}
    rest = (1 - self.p_short) / 2
    places = {'last': self.p_short, 'middle': rest, 'first': rest} if parse.adverbs else {'last': 1.0}
    if parse.adverbs and len(parse.phrases) == 1:  # Without an object, last is after the verb.
      places = {'last': self.p_short + rest, 'first': rest}
    flips = {False: 1 - self.p_opt, True: self.p_opt}
    for order, place, *flipped in itertools.product(orders, places, *[flips] * len(parse.phrases)):
      p = math.prod([orders[order], places[place], *(flips[flip] for flip in flipped)])
      if p:
        yield p, Form(order, place, tuple(flipped))

  def _positions(self, parse: _Parse, form: Form) -> list[Choice]:
    """Returns what may stand at each position of a target of this form."""
    subject, *objects = (self._phrase(phrase, flip) for phrase, flip in zip(parse.phrases, form.flipped))
    verb, what = self._word(parse.verb), objects[0] if objects else []
    adverbs = [choice for word in parse.adverbs for choice in self._word(word)]
    predicate = {
      'last': [*verb, *what, *adverbs],
      'middle': [*verb, *adverbs, *what],
      'first': [*adverbs, *verb, *what],
    }[form.place]
    return subject + predicate if form.order == 'NP VP' else predicate + subject

  def draw(self, rng: random.Random) -> tuple[str, str]:
    source = self._source(rng)
    parse = self._parse(source)
    positions = self._positions(parse, self._drawn(rng, self._forms(parse)))
    return source, ' '.join(self._drawn(rng, [(p, word) for word, p in choices.items()]) for choices in positions)

  @staticmethod
  def _drawn(rng: random.Random, options: Iterable[tuple[float, Any]]) -> Any:
    """Returns one of some things, each with its probability; these add up to 1."""
    place, thing = rng.random(), None
    for p, thing in options:  # noqa: B007  the last one where rounding has left a little
      place -= p
      if place < 0:
        break
    return thing

  def targets(self, source: str) -> dict[str, float]:
    found: dict[str, float] = {}
    parse = self._parse(source)
    for p_form, form in self._forms(parse):
      for words in itertools.product(*(choices.items() for choices in self._positions(parse, form))):
        text = ' '.join(word for word, _ in words)
        found[text] = found.get(text, 0.0) + math.prod((p_form, *(p for _, p in words)))
    return found

  def forms(self, source: str, hypothesis: str) -> list[Form]:
    """Returns the forms in which a text translates a source: none if it is no translation, several if they look alike.

    Raises:
      ValueError: the source is not a sentence of this grammar.
    """
    words, parse = hypothesis.split(), self._parse(source)

    def fits(form: Form) -> bool:
      positions = self._positions(parse, form)
      return len(words) == len(positions) and all(word in choices for word, choices in zip(words, positions))

    return [form for _, form in self._forms(parse) if fits(form)]

  def is_valid(self, source: str, hypothesis: str) -> bool:
    return bool(self.forms(source, hypothesis))

  def idioms(self, source: str) -> list[list[str]]:
    """Returns the phrases that a translation has to contain word by word. Raises ValueError as `forms` does."""
    parse = self._parse(source)
    found = (self._word(word) for phrase in parse.phrases for word in phrase)
    return [[next(iter(choices)) for choices in positions] for positions in found if len(positions) > 1]

  def patterns(self, source: str) -> list[list[Choice]]:
    """Returns what may stand at each position of a translation, for every form. Raises ValueError as `forms` does."""
    parse = self._parse(source)
    return [self._positions(parse, form) for _, form in self._forms(parse)]

  def marginals(self, source: str, words: int) -> list[Choice]:
    """Returns the probability of each word at each position, of a translation that is known to have `words` words.

    No model that predicts all positions independently can do better than these: they mix the orders of all translations.

    Raises:
      ValueError: no translation has this many words, or as `forms` does.
    """
    parse, total = self._parse(source), 0.0
    found: list[Choice] = [{} for _ in range(words)]
    for p, form in self._forms(parse):
      if len(positions := self._positions(parse, form)) == words:
        total += p
        for at_position, choices in zip(found, positions):
          for word, p_word in choices.items():
            at_position[word] = at_position.get(word, 0.0) + p * p_word
    if not total:
      raise ValueError(f'No translation of {source!r} has {words} words.')
    return [{word: p / total for word, p in at_position.items()} for at_position in found]

  def noun_phrases(self, source: str) -> list[list[list[Choice]]]:
    """Returns, for each NP, what may stand at its positions, in one or two ways. Raises ValueError as `forms` does."""
    flips = [flip for flip, p in ((False, 1 - self.p_opt), (True, self.p_opt)) if p]
    return [[self._phrase(phrase, flip) for flip in flips] for phrase in self._parse(source).phrases]


CERTAIN = {'p_long': 1.0, 'p_short': 1.0, 'p_opt': 0.0, 'p_lex': 0.0, 'p_idiom': 0.0}
TASKS = {
  'phrases': (Phrases, {}, 'all coins of the grammar'),
  'monotone': (Phrases, CERTAIN, 'no coin: word for word, in the order of the source'),
  'order': (Phrases, CERTAIN | {'p_long': 0.5}, 'one coin: whether NP or VP comes first'),
  'short': (
    Phrases,
    CERTAIN | {'nouns': 60, 'verbs': 30, 'adjectives': 20, 'adverbs': 15, 'longest': 10, 'p_long': 0.5, 'p_idiom': 0.3},
    'few words and short sentences, the coin of order, and idioms: models that predict all tokens at once learn it in minutes',
  ),
  'clauses': (Clauses, {}, 'independent clauses: more history than order 2 does not help, however long the sentence'),
  'shared-clauses': (Clauses, {'shared': True}, 'clauses with one class in common: they need order 5'),
  'rotation': (Rotation, {}, "the source's words from a random place on"),
}
"""Name of a task -> (its class, what differs from the defaults, what it is). Beside them, agreement-G for any distance G."""


def parse(spec: str) -> Language:
  """Returns the generated language of 'grammar[:TASK][:SPLIT]', by default phrases and train.

  Tasks: the names in TASKS, and agreement-G, in which a word agrees with one G words before it.

  Raises:
    DataError: the task or the split is unknown, or the spec is of another form.
  """
  _, *options = spec.split(':')
  split = options.pop() if options and options[-1] in SIZES else 'train'
  name = options.pop(0) if options else 'phrases'
  if options:
    raise errors.DataError(f'{spec!r} is not of the form grammar[:TASK][:SPLIT]; splits: {", ".join(SIZES)}.')
  if name.startswith('agreement-') and (distance := name.removeprefix('agreement-')).isdecimal() and int(distance):
    return Agreement(split=split, distance=int(distance))
  if name not in TASKS:
    raise errors.unknown('generated language', name, [*TASKS, 'agreement-4', *SIZES], errors.DataError)
  kind, settings, _ = TASKS[name]
  return kind(split=split, **settings)
