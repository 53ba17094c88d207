"""Documents out of text, JSONL and Parquet files."""

from collections.abc import Iterator
import difflib
import glob
import gzip
import json
from pathlib import Path

from jaxlm import errors
from jaxlm.data.source import Source, text_of

TEXT = ('.txt', '.md', '.rst')
LINES = ('.jsonl', '.ndjson', '.json')
SUFFIXES = tuple(s + z for s in TEXT + LINES for z in ('', '.gz')) + ('.parquet',)
DOCUMENT = 8192
"""Longer text files are cut after about this many characters, at a blank line: a held-out part needs documents to
choose from, and a file may be larger than memory."""


def _suffix(path: Path) -> str | None:
  name = path.name.lower()
  return next((s for s in SUFFIXES if name.endswith(s)), None)


def find(name: str) -> list[Path]:
  """Returns the files that a file, a folder or a pattern names. Raises DataError if there are none of a known kind."""
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


def source(path: Path, field: str, document: int) -> Source:
  """Returns the documents of one file; `field` and `document` as for `jaxlm.data.sources.documents`."""
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
