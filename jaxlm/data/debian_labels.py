"""Descriptions of Debian's packages with their labels: the section (one of some 40) and the debtags (any of some 130).

  {"text": ..., "section": "libs", "tags": ["role::program", ...], "group": "source package"}       one JSON object a line

Many packages have a name that says the label (lib...-dev, python3-...), so the name is not part of the text, and where the text has
it as a word it is taken out. Packages of one source have similar descriptions, so that the source decides about the split.
"""

from collections import Counter
from collections.abc import Iterator
import functools
import json
from pathlib import Path
import re
from typing import Any

from jaxlm import errors
from jaxlm.data import debian, files, pair_splits
from jaxlm.data.corpus import cache_folder

NAME = 'debian-packages'
HELD_OUT = 0.1
LEAST_SECTION, LEAST_TAG = 200, 100
"""Fewest texts of a section and of a tag; rarer ones are no classes."""


class LabelledPackages(debian.DebianText):
  """Descriptions with labels; see `debian.DebianText`."""

  def bring(self, folder: Path) -> None:
    """Writes the descriptions into a folder. Raises DataError if apt is not installed or brings none."""
    number = 0
    with open(folder / self.file, 'w', encoding='utf-8') as file:
      for package in packages(folder):
        file.write(json.dumps(package, ensure_ascii=False) + '\n')
        number += 1
    if not number:
      raise errors.DataError(f'apt brought no descriptions for {self.file}: is this system not a Debian one?')


DATASETS = {
  NAME: LabelledPackages(
    "descriptions of Debian's packages with section and debtags, some 60000 short texts, from a Debian system's apt",
    None,
    'none stated for the whole: use it, do not pass it on',
    15.0,
    30e6,
    f'{NAME}.jsonl',
  )
}


def packages(work: Path) -> Iterator[dict[str, Any]]:
  """Yields a record of each package with a long description, without duplicates; see the module's docstring."""
  debian.run_apt(work, 'apt-get', '-o', 'Acquire::Languages=en', '-o', 'Acquire::GzipIndexes=false', 'update')
  lists, texts, seen = work / 'lists', {}, set()
  for index in sorted(lists.glob('*_Translation-en')):
    for stanza in _stanzas(index):
      long = re.search(r'^Description-en: [^\n]*\n((?: [^\n]*\n?)+)', stanza, re.M)
      if long and (text := debian.described(long[1])):
        texts[_field(stanza, 'Package')] = text
  for index in sorted(lists.glob('*_Packages')):
    for stanza in _stanzas(index):
      name = _field(stanza, 'Package')
      text = without_name(texts.get(name, ''), name)
      if text and text not in seen:
        seen.add(text)
        tags = re.sub(r'\n ', ' ', re.search(r'^Tag:((?: [^\n]*\n?)+)', stanza, re.M)[1]) if '\nTag:' in stanza else ''
        source = (_field(stanza, 'Source') or name).split()[0]
        section = _field(stanza, 'Section').rpartition('/')[2]
        yield {'text': text, 'section': section, 'tags': _tags(tags), 'group': source}


def without_name(text: str, name: str) -> str:
  """Returns a description without the words that are the package's name."""
  return re.sub(rf'(?<![\w.+-]){re.escape(name)}(?![\w+-])', '', text, flags=re.I).strip() if name else ''


def _tags(field: str) -> list[str]:
  """Returns the tags of a field such as 'role::program, interface::{shell,x11}'."""
  found = []
  for facet, several, one in re.findall(r'([\w-]+)::(?:\{([^}]*)\}|([\w:+.-]+))', field):
    found += [f'{facet}::{value.strip()}' for value in (several or one).split(',')]
  return list(dict.fromkeys(found))


def _stanzas(index: Path) -> list[str]:
  return re.split(r'\n\n+', index.read_text(encoding='utf-8'))


def _field(stanza: str, name: str) -> str:
  found = re.search(rf'^{name}: (.*)$', stanza, re.M)
  return found[1].strip() if found else ''


def sections(split: str) -> Iterator[tuple[dict[str, Any], str]]:
  """Yields the records of a split whose section has at least 200 texts."""
  return ((package, where) for package, where in _split(split) if package['section'] in _frequent('section'))


def tags(split: str) -> Iterator[tuple[dict[str, Any], str]]:
  """Yields the records of a split that have tags; tags with fewer than 100 texts are left out."""
  for package, where in _split(split):
    kept = [tag for tag in package['tags'] if tag in _frequent('tags')]
    if kept:
      yield package | {'tags': kept}, where


def _path() -> Path:
  path = cache_folder() / 'fetched' / NAME / f'{NAME}.jsonl'
  if not path.is_file():
    raise errors.DataError(f"Debian's packages have not been fetched yet: python -m jaxlm.data.fetch {NAME}")
  return path


def _split(split: str) -> Iterator[tuple[dict[str, Any], str]]:
  for package, where in files.json_examples(_path()):
    if pair_splits.split_of(package['group'], HELD_OUT) == split:
      yield package, where


def _frequent(field: str) -> frozenset[str]:
  return _counted(_path(), _path().stat().st_mtime_ns, field)


@functools.cache
def _counted(path: Path, changed: int, field: str) -> frozenset[str]:
  counts: Counter[str] = Counter()
  for package, _ in files.json_examples(path):
    counts.update(package['tags'] if field == 'tags' else [package['section']])
  least = LEAST_TAG if field == 'tags' else LEAST_SECTION
  return frozenset(name for name, n in counts.items() if n >= least)
