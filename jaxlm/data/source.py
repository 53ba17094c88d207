"""Source: a collection of documents that can be read several times."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from jaxlm import errors


@dataclasses.dataclass(frozen=True)
class Source:
  """A collection of documents that can be read several times.

  Attributes:
    name: name that the user gave.
    read: returns a new iterator over the documents.
    facts: returns what the content depends on (paths, sizes, times), without reading the content.
    parts: files and named sources that it consists of, in order; empty if they are not known.
  """

  name: str
  read: Callable[[], Iterator[str]]
  facts: Callable[[], Any]
  parts: tuple['Source', ...] = ()

  def __iter__(self) -> Iterator[str]:
    empty = True
    for text in self.read():
      if text:
        empty = False
        yield text
    if empty:
      raise errors.DataError(f'{self.name!r} holds no text.')


def labelled(source: Iterable[str]) -> Iterator[tuple[str, str]]:
  """Yields (text, name of the file or source that it comes from, '' if unknown). Raises DataError if there is no text."""
  parts = getattr(source, 'parts', ())
  if not parts:
    yield from ((text, '') for text in source)
    return
  shorten = lambda name: Path(name).name if Path(name).is_file() else name
  short = [shorten(part.name) for part in parts]
  # If files share a name, as wiki/train.jsonl and code/train.jsonl do, the label is the whole path.
  labels = [part.name if short.count(name) > 1 else name for part, name in zip(parts, short)]
  empty = True
  for part, label in zip(parts, labels):
    for text in part.read():
      if text:
        empty = False
        yield text, label
  if empty:
    raise errors.DataError(f'{getattr(source, "name", "The source")!r} holds no text.')


def fingerprint(source: Iterable[str]) -> str:
  """Returns a digest of the facts that a source's content depends on. Raises ValueError for an iterable without `facts`."""
  if not hasattr(source, 'facts'):
    raise ValueError(f'{type(source).__name__} does not know what it depends on: give `key=`, a name for its content.')
  return hashlib.sha256(json.dumps(source.facts(), sort_keys=True).encode()).hexdigest()


def text_of(example: Any, field: str, where: str) -> str:
  """Returns the text in a field of an example, '' for null. `meta.text` is the field text in the field meta.

  Raises:
    DataError: the field does not exist or is not valid text; the message begins with `where`.
  """
  text = _inside(example, field, where)
  if text is None:
    return ''
  if not isinstance(text, str):
    raise errors.DataError(f'{where}: the field {field!r} is {type(text).__name__}, not text.')
  try:
    text.encode()
  except UnicodeEncodeError as e:  # half of a surrogate pair, which JSON can represent and UTF-8 cannot
    raise errors.DataError(f'{where}: the field {field!r} is not valid Unicode ({e.reason}).') from e
  return text


def _inside(example: Any, field: str, where: str) -> Any:
  if not isinstance(example, dict):
    raise errors.DataError(f'{where}: expected an object with the field {field!r}, found {type(example).__name__}.')
  if field in example:  # A field may have a dot in its name.
    return example[field]
  first, _, rest = field.partition('.')
  if not rest or first not in example:
    raise errors.DataError(f'{where}: {errors.unknown("field", field, map(str, example))}')
  return None if example[first] is None else _inside(example[first], rest, where)
