"""Corpora of the studies of translation."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any

from jaxlm.data import pairs
from jaxlm.data.grammar import Phrases
from jaxlm.data.synthetic import Language
from jaxlm.seq2seq_config import Seq2SeqConfig


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Sentence pairs, and the generated language that they are from, if there is one."""

  name: str
  facts: Any
  train: Callable[[], Iterable[tuple[str, str]]]
  test: Callable[[], Sequence[tuple[str, str]]]
  language: Language | None = None


def generated(language: Language) -> Corpus:
  """Returns the corpus of a generated language; its test pairs are of the test split."""
  test = dataclasses.replace(language, split='test')
  return Corpus(type(language).__name__, [language.facts(), test.facts()], lambda: language, lambda: list(test), test)


def corpus(name: str) -> Corpus:
  """Returns the corpus of that name: 'grammar', or 'libreoffice', which `python -m jaxlm.data.fetch libreoffice` brings.

  The grammar has fewer words than by default, so that the lexicon is learned in the time that a CPU allows.
  """
  if name == 'grammar':
    return generated(Phrases(nouns=60, verbs=30, adjectives=20, adverbs=15))
  train, test = texts(name, 'train'), texts(name, 'test')
  digest = hashlib.sha256(json.dumps([train, test]).encode()).hexdigest()
  return Corpus(name, [name, digest], lambda: train, lambda: test)


@functools.cache
def texts(name: str, split: str) -> list[tuple[str, str]]:
  """Returns the English-German pairs of a split."""
  return list(pairs.read(f'{name}:en-de:{split}'))


def changed_fields(model: Seq2SeqConfig) -> dict[str, Any]:
  """Returns the fields that are not at their defaults: a field that a later version adds changes no name of what is kept."""
  default = dataclasses.asdict(Seq2SeqConfig())
  return {name: value for name, value in dataclasses.asdict(model).items() if value != default[name]}
