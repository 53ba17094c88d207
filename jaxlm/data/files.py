"""Reads documents from text, JSONL and Parquet files."""

from collections.abc import Iterator
import difflib
import glob
import json
from pathlib import Path
from typing import Any
import warnings

from jaxlm import errors
from jaxlm.data import parquet, reading
from jaxlm.data.source import Source, text_of

TEXT = ('.txt', '.md', '.rst')
LINES = ('.jsonl', '.ndjson', '.json')
SUFFIXES = tuple(s + z for s in TEXT + LINES for z in ('', *reading.PACKED)) + ('.parquet',)
DOCUMENT = 8192
"""Longer text files are split at a blank line after about this many characters: a validation split needs several documents,
and a file may be larger than memory."""

LONG = 8
"""A text of LONG times DOCUMENT characters is split even within a line."""


def _suffix(path: Path) -> str | None:
  name = path.name.lower()
  return next((s for s in SUFFIXES if name.endswith(s)), None)


def exists(name: str) -> bool:
  """Returns whether a file or folder of this name exists. A name that the system refuses, such as a long list, does not."""
  try:
    return Path(name).expanduser().exists()
  except (OSError, RuntimeError, ValueError):  # A name too long, an unknown ~user, or a null character.
    return False


def find(name: str) -> list[Path]:
  """Returns the files of a name, sorted: the file itself, the files in a folder, or the files that match a pattern.

  A warning names files of unknown kinds, which are skipped. Raises DataError if there is no file of a known kind.
  """
  try:
    path = Path(name).expanduser()
    return _find(name, path)
  except (RuntimeError, ValueError, OSError) as e:
    if isinstance(e, errors.DataError):
      raise
    raise errors.DataError(f'There is no file or folder {name!r}: {e}') from e


def _find(name: str, path: Path) -> list[Path]:
  if path.is_dir():
    inside = sorted(p for p in path.rglob('*') if not any(x.startswith('.') for x in p.relative_to(path).parts))
    return _known(inside, f'The folder {name!r} holds no file of a known kind ({" ".join(SUFFIXES)}).', name)
  if path.is_file():
    if _suffix(path) is None:
      raise errors.DataError(f'{name!r} is of an unknown kind. Known: {" ".join(SUFFIXES)}.')
    return [path]
  if any(c in name for c in '*?['):
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    return _known(found, f'No file of a known kind matches {name!r}.', name)
  if path.exists() or path.is_symlink():
    raise errors.DataError(f'{name!r} is neither a file nor a folder, or a link to nothing.')
  near = []
  if path.parent.is_dir():
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.5)
    near = [str(path.parent / n) for n in near]
  near = near or difflib.get_close_matches(name, ['embedded'], n=1)
  hint = f' Did you mean {near[0]!r}?' if near else " 'embedded' is text that is on every machine."
  raise errors.DataError(f'There is no file or folder {name!r}.{hint}')


def _known(paths: list[Path], none: str, name: str) -> list[Path]:
  """Returns the files of a known kind among `paths`, and warns about skipped paths: other files and linked folders."""
  found = [p for p in paths if _suffix(p) and p.is_file()]
  links = [p for p in paths if p.is_symlink() and p.is_dir()]
  others = [p for p in paths if not p.is_dir() and p not in set(found)]
  kinds = (('other files', others), ('linked folders, which are not followed', links))
  aside = [f'{len(some)} {what} ({_some_names(some)})' for what, some in kinds if some]
  if not found:
    raise errors.DataError(none + (f' There are {" and ".join(aside)}.' if aside else ''))
  if aside:
    warnings.warn(f'{name!r}: {len(found)} files are read. Left aside: {" and ".join(aside)}.', stacklevel=2)
  return found


def _some_names(paths: list[Path], most: int = 5) -> str:
  return ', '.join(p.name for p in paths[:most]) + (', ...' if len(paths) > most else '')


def source(path: Path, field: str, document: int) -> Source:
  """Returns the documents of one file; `field` and `document` as for `jaxlm.data.sources.documents`."""
  suffix = _suffix(path)
  if suffix == '.parquet':
    options, read = field, lambda: parquet.texts(path, field)
  elif suffix.startswith(TEXT):
    options, read = document, lambda: _text(path, document)
  else:
    options, read = field, lambda: _json_lines(path, field)

  def facts():
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, options]

  return Source(str(path), read, facts)


def _text(path: Path, document: int) -> Iterator[str]:
  lines, size = [], 0
  for _, line in reading.numbered_pieces(path):
    lines.append(line)
    size += len(line)
    # Split at a blank line if there is one soon, else at the end of any line.
    if document and line.endswith('\n') and size >= document and (not line.strip() or size >= 2 * document):
      yield from _parts(''.join(lines), document)
      lines, size = [], 0
    elif document and size >= LONG * document:  # A very long line, as in text8.
      *parts, rest = _parts(''.join(lines), document)
      yield from parts
      lines, size = [rest], len(rest)
  if lines:
    yield from _parts(''.join(lines), document)


def _parts(text: str, document: int) -> Iterator[str]:
  """Yields a text whole, or in parts if it is much too long; it is split at line ends or between words if possible."""
  text = text.strip('\n')
  if document and len(text) >= LONG * document:
    while len(text) > 2 * document:
      at = next((at for mark in '\n ' if (at := text.rfind(mark, 1, 2 * document)) > 0), None)
      cut, after = (2 * document, 2 * document) if at is None else (at, at + 1)
      yield text[:cut]
      text = text[after:]
  yield text


def _json(text: str, where: str) -> Any:
  try:
    return json.loads(text)
  except RecursionError as e:
    raise errors.DataError(f'{where} is not readable JSON: it is nested too deep.') from e
  except ValueError as e:
    raise errors.DataError(f'{where} is not readable JSON: {e}.') from e


def _json_lines(path: Path, field: str) -> Iterator[str]:
  return (text_of(example, field, where) for example, where in json_examples(path))


def json_examples(path: Path) -> Iterator[tuple[Any, str]]:
  """Yields (example, words that say where it stands) of JSON Lines, or of one JSON array. Raises DataError with file and line."""
  lines, first = reading.numbered_lines(path), True
  for number, line in lines:
    if not line.strip():
      continue
    if first and line.lstrip().startswith('['):  # one array, not one object a line
      examples = _json(line + ''.join(rest for _, rest in lines), str(path))
      yield from ((example, f'{path}, element {i}') for i, example in enumerate(examples))
      return
    first = False
    yield _json(line, f'{path}, line {number}'), f'{path}, line {number}'
