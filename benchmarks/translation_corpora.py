"""Corpora of the studies of translation, and the cache of what their models made, so that nothing is trained twice."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
import time
from typing import Any

from jaxlm.data import pairs
from jaxlm.data.corpus import cache_folder
from jaxlm.data.grammar import Phrases
from jaxlm.data.synthetic import Language
from jaxlm.seq2seq_config import Seq2SeqConfig

VERSION = 1
"""Raise it when training changes in a way that settings do not show: then nothing that was kept before is used."""


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


def kept_path(kind: str, facts: Any, suffix: str) -> Path:
  """Returns where the cache folder has what was made of these facts, JSON values."""
  name = hashlib.sha256(json.dumps([VERSION, facts]).encode()).hexdigest()[:16]
  return cache_folder() / 'trained' / f'{kind}-{name}{suffix}'


def kept(kind: str, facts: Any, make: Callable[[], Any] | None) -> Any:
  """Returns what `make` made of these facts, JSON values, from the cache folder; if it is not there, makes it first.

  Without `make`, what is not there is None.
  """
  path = kept_path(kind, facts, '.json')
  if not path.exists():
    if make is None:
      return None
    start = time.perf_counter()
    made = make()
    seconds = round(time.perf_counter() - start, 1)
    write_whole(path, json.dumps({'facts': facts, 'seconds': seconds, 'made': made}).encode())
  return json.loads(path.read_text())['made']


def write_whole(path: Path, data: bytes) -> None:
  """Writes a file of the cache folder; a run that is stopped leaves no half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(f'.{os.getpid()}.part')
  part.write_bytes(data)
  part.replace(path)
