"""Where text comes from: a spec such as 'embedded', 'notes/', 'a.jsonl,b.txt' or 'tfds:lm1b:train' -> documents.

  for text in documents('embedded'): ...        # as often as you like: each pass begins anew

Whatever is wrong with a source is a DataError that names the file and the line.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import difflib
import glob
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from jaxlm import errors

TEXT = ('.txt', '.md', '.rst')
LINES = ('.jsonl', '.ndjson', '.json')
SUFFIXES = tuple(s + z for s in TEXT + LINES for z in ('', '.gz')) + ('.parquet',)
DOCUMENT = 8192
"""Longer text files are cut after about this many characters, at a blank line: a held-out part needs documents to
choose from, and a file may be larger than memory."""


@dataclasses.dataclass(frozen=True)
class Source:
  """Documents that can be read again and again.

  Attributes:
    name: what the user called it.
    read: starts a new pass.
    facts: says what the content depends on (paths, sizes, times), without reading it.
    parts: the files and named sources it consists of, in order; empty where that is not known.
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
  """Yields (text, the file or named source that it is from), '' where that is not known. Raises as iterating does."""
  parts = getattr(source, 'parts', ())
  if not parts:
    yield from ((text, '') for text in source)
    return
  shorten = lambda name: Path(name).name if Path(name).is_file() else name
  short = [shorten(part.name) for part in parts]
  # Of files that share a name, as in wiki/train.jsonl and code/train.jsonl, the path tells which.
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
  """Returns a digest of what a source's content depends on."""
  if not hasattr(source, 'facts'):
    raise ValueError(f'{type(source).__name__} does not know what it depends on: give `key=`, a name for its content.')
  return hashlib.sha256(json.dumps(source.facts(), sort_keys=True).encode()).hexdigest()


def documents(
  spec: str,
  *,
  field: str = 'text',
  data_dir: str | Path | None = None,
  download: bool = False,
  document: int = DOCUMENT,
) -> Source:
  """Returns the documents of a spec.

  Args:
    spec: 'embedded' (text that ships with Python), a file (.txt .md .rst .jsonl .json .parquet, the first five also
      .gz), a folder (its files, sorted), a pattern with *, 'tfds:NAME[:SPLIT]', or several of these with commas between.
    field: where JSON, Parquet and TFDS examples keep their text.
    data_dir: where TFDS preparations lie (default: TFDS's own).
    download: whether TFDS may download and prepare what is not there.
    document: about how many characters of a text file are one document; 0: the whole file.

  Raises:
    DataError: something that the spec names does not exist or is of an unknown kind.
  """
  names = [spec] if Path(spec).expanduser().exists() else [s.strip() for s in spec.split(',')]
  if not all(names):
    raise errors.DataError(f'The source {spec!r} names nothing{" between two commas" if len(names) > 1 else ""}.')
  parts = []
  for name in names:
    if name == 'embedded':
      from jaxlm.data import embedded

      parts.append(Source(name, embedded.read, embedded.facts))
    elif name.startswith('tfds:'):
      from jaxlm.data import tfds_source

      parts.append(tfds_source.source(name, field, data_dir, download))
    else:
      parts += [_file(path, field, document) for path in _files(name)]
  if len(parts) == 1:
    return dataclasses.replace(parts[0], name=spec, parts=tuple(parts))
  read = lambda: (text for part in parts for text in part.read())
  return Source(spec, read, lambda: [part.facts() for part in parts], tuple(parts))


# ---- held-out documents ----


def split(source: Iterable[str], valid_fraction: float) -> tuple[Source, Source]:
  """Returns (train, valid). The hash of a document's text decides, so order, additions and copies change nothing.

  Raises:
    DataError: on reading, when a part turns out empty.
    ValueError: valid_fraction is not in (0, 1).
  """
  if not 0 < valid_fraction < 1:
    raise ValueError(f'{valid_fraction=} must lie between 0 and 1.')

  def held_out(text: str) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') < valid_fraction * 2**64

  name = getattr(source, 'name', 'documents')

  def part(label: str, wanted: bool) -> Source:
    def read():
      total = kept = 0
      for text in source:
        total += 1
        if held_out(text) == wanted:
          kept += 1
          yield text
      if not kept:
        more = 'larger' if wanted else 'smaller'
        raise errors.DataError(
          f'None of the {total} documents of {name!r} fell into the {label} part at {valid_fraction=}: '
          f'choose a {more} fraction, or name files for each part.'
        )

    return Source(f'{name} ({label})', read, lambda: [fingerprint(source), label, valid_fraction])

  return part('train', False), part('valid', True)


# ---- files ----


def _suffix(path: Path) -> str | None:
  name = path.name.lower()
  return next((s for s in SUFFIXES if name.endswith(s)), None)


def _files(name: str) -> list[Path]:
  path = Path(name).expanduser()
  if path.is_dir():
    inside = [p for p in path.rglob('*') if not any(x.startswith('.') for x in p.relative_to(path).parts)]
    found = sorted(p for p in inside if _suffix(p) and p.is_file())
    if not found:
      raise errors.DataError(f'The folder {name!r} holds no file of a known kind ({" ".join(SUFFIXES)}).')
    return found
  if path.is_file():
    if _suffix(path) is None:
      raise errors.DataError(f'{name!r} is of an unknown kind. Known: {" ".join(SUFFIXES)}.')
    return [path]
  if any(c in name for c in '*?['):
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if _suffix(Path(p)) and Path(p).is_file())
    if not found:
      raise errors.DataError(f'No file of a known kind matches {name!r}.')
    return found
  near = []
  if path.parent.is_dir():
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.5)
    near = [str(path.parent / n) for n in near]
  near = near or difflib.get_close_matches(name, ['embedded'], n=1)
  hint = f' Did you mean {near[0]!r}?' if near else " 'embedded' is text that is on every machine."
  raise errors.DataError(f'There is no file or folder {name!r}.{hint}')


def _file(path: Path, field: str, document: int) -> Source:
  suffix = _suffix(path)
  if suffix == '.parquet':
    options, read = field, lambda: _parquet(path, field)
  elif suffix.removesuffix('.gz') in TEXT:
    options, read = document, lambda: _text(path, document)
  else:
    options, read = field, lambda: _json_lines(path, field)

  def facts():
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, options]

  return Source(str(path), read, facts)


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
  opener = gzip.open if path.name.lower().endswith('.gz') else open
  number = 0
  try:
    with opener(path, 'rb') as file:
      # Bytes, not text mode: a decoding error can then be given its line.
      for number, line in enumerate(file, 1):
        text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
        yield number, (text[:-2] + '\n' if text.endswith('\r\n') else text)
  except UnicodeDecodeError as e:
    raise errors.DataError(
      f'{path}, line {number}: byte {e.object[e.start]:#04x} at column {e.start + 1} is not UTF-8. '
      f'Convert the file, for instance: iconv -f latin1 -t utf-8 {path.name} > new{path.suffix}'
    ) from e
  except (OSError, EOFError) as e:  # EOFError: a gzip file cut short
    raise errors.DataError(f'{path} cannot be read (after line {number}): {e}') from e


def _text(path: Path, document: int) -> Iterator[str]:
  lines, size = [], 0
  for _, line in _numbered_lines(path):
    lines.append(line)
    size += len(line)
    # At a blank line if one comes soon, else at any line end.
    if document and size >= document and (not line.strip() or size >= 2 * document):
      yield ''.join(lines).strip('\n')
      lines, size = [], 0
  if lines:
    yield ''.join(lines).strip('\n')


def text_of(example: Any, field: str, where: str) -> str:
  """Returns the text in a field of an example. Raises DataError, opening with `where`, if there is none."""
  if not isinstance(example, dict):
    raise errors.DataError(f'{where}: expected an object with the field {field!r}, found {type(example).__name__}.')
  if field not in example:
    raise errors.DataError(f'{where}: {errors.unknown("field", field, map(str, example))}')
  text = example[field]
  if not isinstance(text, str):
    raise errors.DataError(f'{where}: the field {field!r} is {type(text).__name__}, not text.')
  try:
    text.encode()
  except UnicodeEncodeError as e:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
    raise errors.DataError(f'{where}: the field {field!r} is not valid Unicode ({e.reason}).') from e
  return text


def _json_lines(path: Path, field: str) -> Iterator[str]:
  lines = _numbered_lines(path)
  for number, line in lines:
    if not line.strip():
      continue
    if number == 1 and line.lstrip().startswith('['):  # one array, not one object a line
      try:
        examples = json.loads(line + ''.join(rest for _, rest in lines))
      except ValueError as e:
        raise errors.DataError(f'{path} is not readable JSON: {e}.') from e
      for i, example in enumerate(examples):
        yield text_of(example, field, f'{path}, element {i}')
      return
    try:
      example = json.loads(line)
    except ValueError as e:
      raise errors.DataError(f'{path}, line {number} is not readable JSON: {e}.') from e
    yield text_of(example, field, f'{path}, line {number}')


def _parquet(path: Path, field: str) -> Iterator[str]:
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ModuleNotFoundError as e:
    raise errors.DataError(f'Reading {path} needs pyarrow: pip install pyarrow.') from e
  try:
    with pq.ParquetFile(path) as file:
      if field not in (columns := file.schema_arrow.names):
        raise errors.DataError(f'{path}: {errors.unknown("column", field, columns)}')
      row = 0
      for batch in file.iter_batches(columns=[field], batch_size=1024):
        for text in batch.column(0).to_pylist():
          if text is not None:
            yield text_of({field: text}, field, f'{path}, row {row}')
          row += 1
  except pa.ArrowInvalid as e:
    raise errors.DataError(f'{path} is not a readable Parquet file: {e}.') from e
