"""Sentence pairs out of files: TSV, two aligned text files, JSON Lines and Parquet. Whatever is wrong is a DataError.

A file of pairs is read in one pass and never held whole. What a pair is in each kind of file:

  TSV               source<TAB>target, one pair a line
  aligned text      line i of the one file is the translation of line i of the other
  JSONL, Parquet    {"source": ..., "target": ...}, {"en": ..., "de": ...} or {"translation": {"en": ..., "de": ...}}
"""

from collections.abc import Iterable, Iterator
import itertools
from pathlib import Path
from typing import Any

from jaxlm import errors
from jaxlm.data import files, parquet, reading
from jaxlm.data.source import text_of

TSV = ('.tsv', '.tab')
KINDS = (*TSV, *files.LINES, '.parquet')
"""Suffixes of files that hold both sides of each pair; the text files may also be packed (.gz and so on)."""


def unpacked_name(path: Path) -> str:
  """Returns a file's name in small letters, without the suffix of a packed file."""
  name = path.name.lower()
  return name.removesuffix(next((z for z in reading.PACKED if name.endswith(z)), ''))


def holds_pairs(path: Path) -> bool:
  """Returns whether a file's name says that it holds both sides of each pair."""
  return unpacked_name(path).endswith(KINDS)


def pairs(path: Path, languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
  """Yields the (source, target) texts of one file.

  Args:
    path: a file for which `holds_pairs` is true.
    languages: names of the source and of the target language, for files that name their sides by language.

  Raises:
    DataError: the file cannot be read, a line is not a pair, or a language is not there; the message names the place.
  """
  name = unpacked_name(path)
  if name.endswith(TSV):
    return _tab_separated(path)
  return _parquet(path, languages) if name.endswith('.parquet') else _json_lines(path, languages)


def _tab_separated(path: Path) -> Iterator[tuple[str, str]]:
  for number, line in reading.numbered_lines(path):
    line = line.rstrip('\n')
    if not line.strip():
      yield '', ''
      continue
    parts = line.split('\t')
    if len(parts) != 2:
      raise errors.DataError(
        f'{path}, line {number}: expected two columns, source<TAB>target, and found {len(parts)}: {errors.shown(line)}'
      )
    yield parts[0], parts[1]


def _json_lines(path: Path, languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
  for example, where in files.json_examples(path):
    if not isinstance(example, dict):
      raise errors.DataError(f'{where}: expected an object with a pair, found {type(example).__name__}.')
    source, target = _fields(_names(example), languages, where)
    yield text_of(example, source, where), text_of(example, target, where)


def _parquet(path: Path, languages: tuple[str, str]) -> Iterator[tuple[str, str]]:
  source, target = _fields(parquet.columns(path), languages, str(path))
  return zip(parquet.texts(path, source), parquet.texts(path, target), strict=True)


def _names(example: dict[str, Any]) -> list[str]:
  inside = example.get('translation')
  return [*example, *(f'translation.{name}' for name in inside)] if isinstance(inside, dict) else [*example]


def _fields(names: Iterable[str], languages: tuple[str, str], where: str) -> tuple[str, str]:
  """Returns the names of the two fields of a pair among those that there are."""
  names = list(map(str, names))
  inside = [f'translation.{language}' for language in languages]
  for wanted in (inside, languages, ('source', 'target')):
    if all(name in names for name in wanted):
      return wanted[0], wanted[1]
  for language, path in zip(languages, inside):
    if language not in names and path not in names:
      known = [name.removeprefix('translation.') for name in names if name != 'translation']
      raise errors.DataError(
        f'{where}: {errors.unknown("language", language, known)} A pair is {{"source": ..., "target": ...}}, '
        f'{{"{languages[0]}": ..., "{languages[1]}": ...}}, or the latter inside "translation".'
      )
  raise errors.DataError(f'{where}: the languages {" and ".join(languages)} are not side by side in one object.')


def aligned(source: Path, target: Path) -> Iterator[tuple[str, str]]:
  """Yields the pairs of two text files of equally many lines.

  Raises:
    DataError: a file cannot be read, or one has more lines than the other; the message names both numbers. Which is known
      only where the shorter one ends, after the pairs before it.
  """
  lines = itertools.zip_longest(reading.numbered_lines(source), reading.numbered_lines(target))
  counts = [0, 0]
  for sides in lines:
    for i, side in enumerate(sides):
      counts[i] += side is not None
    if counts[0] == counts[1]:
      yield sides[0][1].rstrip('\n'), sides[1][1].rstrip('\n')
  if counts[0] != counts[1]:
    raise errors.DataError(
      f'{source} has {counts[0]} lines and {target} has {counts[1]}: aligned files have equally many, '
      'line i of one being the translation of line i of the other. Make them from the same list of pairs again.'
    )


def in_order(one: Path, other: Path, languages: tuple[str, str]) -> tuple[Path, Path]:
  """Returns two aligned files as (source, target): by the languages that their names end in, or else in the given order.

  Raises:
    DataError: the names end in languages of which only one is asked for.
  """
  found = [unpacked_name(path).rpartition('.')[2] for path in (one, other)]
  if set(found) == set(languages) and len(set(found)) == 2:
    return (one, other) if found[0] == languages[0].lower() else (other, one)
  if set(found) & set(languages):
    raise errors.DataError(
      f'{one} and {other} are {found[0]} and {found[1]} by their names; asked for are {languages[0]} and {languages[1]}. '
      f'For these, set the languages to {found[0]} and {found[1]}.'
    )
  return one, other
