"""Reads records, {column: value}, from CSV, TSV, Orange's .tab, JSON Lines and Parquet files, and from TFDS.

A .tab file of Orange has three header lines (names, types, flags), which are skipped; so are blank lines in any file. Every error is
a DataError that names the file and the line.
"""

from collections.abc import Iterator
import csv
import glob
from pathlib import Path
from typing import Any

from jaxlm import errors
from jaxlm.data import files, parquet, reading, tfds_source

Record = tuple[dict[str, Any], str]
"""A record, and words that say where it stands."""
TABLES = {'.csv': ',', '.tsv': '\t', '.tab': '\t'}
"""Suffix of a table -> its delimiter."""
KINDS = (*TABLES, *files.LINES, '.parquet')
ORANGE_TYPES = {'', 'c', 'continuous', 'd', 'discrete', 's', 'string', 't', 'time', 'basket'}
"""Words of the second header line of Orange's files."""


def _suffix(path: Path) -> str | None:
  name = path.name.lower()
  name = name.removesuffix(next((z for z in reading.PACKED if name.endswith(z)), ''))
  return next((kind for kind in KINDS if name.endswith(kind)), None)


def find(spec: str) -> list[Path]:
  """Returns the files of a spec: a file, a pattern with *, or several of these separated by commas.

  Raises:
    DataError: a file does not exist or is of an unknown kind.
  """
  names = [spec] if files.exists(spec) else [name.strip() for name in spec.split(',')]
  found = []
  for name in names:
    path = Path(name).expanduser()
    paths = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path)))) if name else []
    if not paths:
      raise errors.DataError(f'There is no file {name!r} with labelled texts. Known kinds: {" ".join(KINDS)}.')
    for one in paths:
      if _suffix(one) is None:
        raise errors.DataError(f'{one} is of an unknown kind. Known: {" ".join(KINDS)}, the text files also packed.')
    found += paths
  return found


def facts(path: Path) -> list[Any]:
  """Returns what the content of a file depends on, without reading it."""
  stat = path.stat()
  return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def records(path: Path, *, header: bool = True) -> Iterator[Record]:
  """Yields the records of a file.

  Args:
    path: a file of a known kind.
    header: whether the first line of a table names its columns; otherwise they are named '0', '1', ...

  Raises:
    DataError: the file cannot be read, two columns have the same name, or a line has another number of columns than the first.
  """
  suffix = _suffix(path)
  if suffix in TABLES:
    return _table(path, TABLES[suffix], suffix, header)
  if suffix == '.parquet':
    return _parquet(path)
  return _json_lines(path)


def _table(path: Path, delimiter: str, suffix: str, header: bool) -> Iterator[Record]:
  csv.field_size_limit(2**31 - 1)  # A text may be long.
  quoting = csv.QUOTE_NONE if suffix == '.tsv' else csv.QUOTE_MINIMAL
  lines = (line for _, line in reading.numbered_lines(path))
  rows = csv.reader(lines, delimiter=delimiter, quoting=quoting)
  names: list[str] = []
  try:
    for row in rows:
      where = f'{path}, line {rows.line_num}'
      if not any(cell.strip() for cell in row):
        continue
      if not names:
        names = [cell.strip() for cell in row] if header else [str(i) for i in range(len(row))]
        _check_names(names, where)
        if header:
          if suffix == '.tab':
            row = _skip_orange_header(rows)
            if row is None:
              continue
          else:
            continue
      if len(row) != len(names):
        raise errors.DataError(
          f'{where}: found {len(row)} columns, and the first line has {len(names)} ({", ".join(names)}). Is a text with '
          f'{delimiter!r} in it not quoted?'
        )
      yield dict(zip(names, row)), where
  except csv.Error as e:
    raise errors.DataError(f'{path}, line {rows.line_num}: {e}.') from e


def _skip_orange_header(rows: Iterator[list[str]]) -> list[str] | None:
  """Skips the lines of types and flags. Returns None, or the first row of a file that has none of them."""
  types = next(rows, None)
  if types is None or {cell.strip().lower() for cell in types} - ORANGE_TYPES:
    return types
  next(rows, None)
  return None


def _check_names(names: list[str], where: str) -> None:
  double = [name for name in dict.fromkeys(names) if names.count(name) > 1]
  if double:
    raise errors.DataError(
      f'{where}: {names.count(double[0])} columns have the name {double[0]!r}; rename one of them.'
    )


def _json_lines(path: Path) -> Iterator[Record]:
  for example, where in files.json_examples(path):
    if not isinstance(example, dict):
      raise errors.DataError(f'{where}: expected an object with a text and its label, found {type(example).__name__}.')
    yield example, where


def _parquet(path: Path) -> Iterator[Record]:
  _check_names([name for name in parquet.columns(path) if '.' not in name], str(path))
  for row, example in enumerate(parquet.rows(path)):
    yield example, f'{path}, row {row}'


def tfds_records(builder: Any, name: str, split: str) -> Iterator[Record]:
  """Yields the examples of a TFDS split; labels have their names, and texts are str. `builder`: from `tfds_source.builder`."""
  features = builder.info.features
  for i, example in enumerate(tfds_source.examples(builder, split)):
    where = f'TFDS dataset {name!r}, example {i}'
    yield {field: _plain(value, features[field], where, field) for field, value in example.items()}, where


def _plain(value: Any, feature: Any, where: str, field: str) -> Any:
  if hasattr(feature, 'int2str'):  # A class label.
    return feature.int2str(int(value))
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as e:
      raise errors.DataError(f'{where}: the field {field!r} is not UTF-8.') from e
  return value.item() if hasattr(value, 'item') and getattr(value, 'ndim', 1) == 0 else value
