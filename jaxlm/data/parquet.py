"""Reads text from a column of a Parquet file, or from a field inside a column."""

from collections.abc import Iterator
from pathlib import Path

from jaxlm import errors
from jaxlm.data.source import text_of


def columns(path: Path) -> list[str]:
  """Returns the names of a file's columns, those inside a column as `translation.en`. Raises DataError naming the file."""
  pa, pq = _pyarrow(path)
  try:
    with pq.ParquetFile(path) as file:
      return [name for field in file.schema_arrow for name in (field.name, *_inside(field))]
  except (pa.ArrowException, OSError) as e:
    raise errors.DataError(f'{path} is not a readable Parquet file: {e}.') from e


def _inside(field) -> list[str]:
  return [f'{field.name}.{field.type.field(i).name}' for i in range(field.type.num_fields)]


def _pyarrow(path: Path):
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ModuleNotFoundError as e:
    raise errors.DataError(f'Reading {path} needs pyarrow: pip install pyarrow.') from e
  return pa, pq


def texts(path: Path, field: str) -> Iterator[str]:
  """Yields the text of each row, '' for null. Raises DataError naming the file, and the row where one is at fault."""
  pa, pq = _pyarrow(path)
  row = 0
  try:
    with pq.ParquetFile(path) as file:
      column = _column(path, field, file.schema_arrow.names)
      for batch in file.iter_batches(columns=[field], batch_size=1024):
        # Select by name: for the column "text", pyarrow also returns columns such as "text.lang".
        for value in _values(batch.column(batch.schema.names.index(column)), path, row):
          yield text_of({column: value}, field, f'{path}, row {row}')
          row += 1
  except (pa.ArrowException, OSError) as e:
    after = f' (after row {row - 1})' if row else ''
    raise errors.DataError(f'{path} is not a readable Parquet file{after}: {e}.') from e


def rows(path: Path) -> Iterator[dict[str, object]]:
  """Yields each row as {column: value}. Raises DataError naming the file if it cannot be read."""
  pa, pq = _pyarrow(path)
  try:
    with pq.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=1024):
        yield from batch.to_pylist()
  except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
    raise errors.DataError(f'{path} is not a readable Parquet file: {e}.') from e


def _column(path: Path, field: str, columns: list[str]) -> str:
  """Returns the column of a field such as meta.text: the column "meta.text" if it exists, else the column "meta"."""
  parts = field.split('.')
  column = next((name for n in range(len(parts), 0, -1) if (name := '.'.join(parts[:n])) in columns), None)
  if column is None:
    raise errors.DataError(f'{path}: {errors.unknown("column", field, columns)}')
  if columns.count(column) > 1:
    raise errors.DataError(f'{path} has {columns.count(column)} columns of the name {column!r}.')
  return column


def _values(array, path: Path, row: int) -> list[object]:
  try:
    return array.to_pylist()
  except UnicodeDecodeError as e:
    good = 0
    while _decodes(array[good]):
      good += 1
    raise errors.DataError(f'{path}, row {row + good}: the text is not UTF-8 ({e.reason} at byte {e.start}).') from e


def _decodes(value) -> bool:
  try:
    value.as_py()
  except UnicodeDecodeError:
    return False
  return True
