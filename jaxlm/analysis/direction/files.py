"""Scores on disk: written in parts by a run that may be killed, merged into one Parquet file, and read again.

A run writes its scores to files in OUT.parts/; a file's name gives the range of its documents, and a file gets this name only
when it is complete. `facts` (everything that the scores depend on) are stored in OUT.parts/facts.json and in the merged file.
A run that is started again with different facts raises an error that names them. The merged file does not depend on where
a run was interrupted.
"""

from collections.abc import Iterable, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import shutil
import time
from typing import Any

import numpy as np

from jaxlm import errors
from jaxlm.analysis.direction.records import COLUMNS, Score, text_digest
from jaxlm.io import locks

FORMAT = 1
"""Version of the scores. Increase it when a change of the code gives the same texts other scores."""
FACTS = b'jaxlm.direction'
ROWS = 1 << 16
"""Documents per row group of the Parquet file."""
WORDS = {
  'source': "the corpus's files (size or time)",
  'weights': "the model's weights",
  'reverse_weights': "the reverse model's weights",
  'tokenizer': 'the tokenizer',
}

# The fact named by a key may differ if the fact named by its value agrees: the same weights may be at another path.
NAMES = {'model': 'weights', 'reverse_model': 'reverse_weights', 'corpus': 'source'}


def pyarrow():
  """Returns (pyarrow, pyarrow.parquet). Raises DataError if it is not installed."""
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ModuleNotFoundError as e:
    raise errors.DataError('Scores are kept in Parquet files, which need pyarrow: pip install pyarrow.') from e
  return pa, pq


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
  """Returns the names and both values of the facts that differ, or ''."""
  same = lambda key: before.get(key) == now.get(key)
  changed = [key for key in dict.fromkeys((*now, *before)) if not same(key) and not same(NAMES.get(key, key))]
  return ', '.join(f'{WORDS.get(key, key)} ({before.get(key)} then, {now.get(key)} now)' for key in changed)


def locked(out: str | Path) -> contextlib.AbstractContextManager[None]:
  """Locks a file of scores; raises DataError at once if another run holds the lock. A killed run does not keep the lock."""
  out = Path(out)
  error = errors.DataError(
    f'Another run is writing {out}. Wait for it, or choose another --out; nothing was changed here.'
  )
  return locks.exclusive(out.with_name(out.name + '.lock'), error)


class Parts:
  """Writes a run's scores in parts. `done` documents are on disk; `complete` is true once the parts are merged.

  Args:
    out: the Parquet file to write.
    facts: what the scores depend on, as plain data.
    overwrite: deletes the results of an earlier run, finished or not.
    seconds: shortest time between two parts.

  Raises:
    DataError: an earlier run had different facts, or `out` is not a file of scores.
  """

  def __init__(self, out: str | Path, facts: dict[str, Any], *, overwrite: bool = False, seconds: float = 30.0):
    self.out, self.facts, self.seconds = Path(out), facts, seconds
    self.folder = self.out.with_name(self.out.name + '.parts')
    if overwrite:
      self.out.unlink(missing_ok=True)
      shutil.rmtree(self.folder, ignore_errors=True)
    self.complete = self.out.exists()
    if self.complete:
      self._compare(self.out, read_facts(self.out))
      shutil.rmtree(self.folder, ignore_errors=True)  # A run that was killed after merging left it.
    elif (self.folder / 'facts.json').exists():
      self._compare(self.folder, json.loads((self.folder / 'facts.json').read_text(encoding='utf-8')))
    else:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._whole(self.folder / 'facts.json', lambda path: path.write_text(json.dumps(facts) + '\n', encoding='utf-8'))
    self.done = 0 if self.complete else self._resume()
    self._waiting: list[Score] = []
    self._written = time.monotonic()

  def _compare(self, where: Path, before: dict[str, Any]) -> None:
    if changed := difference(before, self.facts):
      raise errors.DataError(
        f'{where} is of a run that differed in {changed}. Start again with --overwrite, or choose another --out.'
      )

  def _resume(self) -> int:
    """Returns how many documents the parts hold; deletes damaged files and parts that leave a gap after the others."""
    done = 0
    for path in sorted(self.folder.glob('*.parquet')):
      first, _, after = path.stem.partition('-')
      try:
        rows = pyarrow()[1].ParquetFile(path).metadata.num_rows
        good = int(first) == done and int(after) - done == rows
      except (OSError, ValueError):
        good = False
      if not good:
        path.unlink()
        continue
      done += rows
    for path in self.folder.glob('.*'):
      path.unlink()
    return done

  def add(self, scores: Sequence[Score]) -> None:
    """Adds the next documents' scores; writes a part if `seconds` have passed since the last one."""
    self._waiting += scores
    if self._waiting and time.monotonic() - self._written >= self.seconds:
      self._write()

  def _write(self) -> None:
    pa, pq = pyarrow()
    after = self.done + len(self._waiting)
    columns = {
      name: pa.array([getattr(s, name) for s in self._waiting], kind, from_pandas=True)  # NaN: not scored, so null
      for name, kind in COLUMNS.items()
    }
    table = pa.table(columns)
    self._whole(self.folder / f'{self.done:012d}-{after:012d}.parquet', lambda path: pq.write_table(table, path))
    self.done, self._waiting, self._written = after, [], time.monotonic()

  @staticmethod
  def _whole(path: Path, write) -> None:
    scratch = path.with_name('.' + path.name)
    write(scratch)
    with open(scratch, 'rb') as file:
      os.fsync(file.fileno())
    scratch.replace(path)

  def finish(self) -> None:
    """Merges the parts into one file, and deletes them."""
    pa, pq = pyarrow()
    if self._waiting:
      self._write()
    schema = pa.schema(list(COLUMNS.items()), metadata={FACTS: json.dumps(self.facts)})

    def merge(path: Path) -> None:
      with pq.ParquetWriter(path, schema) as file:
        pending = schema.empty_table()
        for part in sorted(self.folder.glob('*.parquet')):
          pending = pa.concat_tables([pending, pq.read_table(part).cast(schema)])
          while len(pending) >= ROWS:
            file.write_table(pending.slice(0, ROWS).combine_chunks())
            pending = pending.slice(ROWS)
        if len(pending):
          file.write_table(pending.combine_chunks())

    self._whole(self.out, merge)
    shutil.rmtree(self.folder)
    self.complete = True


# ---- reading ----


@dataclasses.dataclass(frozen=True)
class Scores:
  """The D scored documents of a file, sorted by id.

  Attributes:
    path: the file.
    facts: what the scores depend on.
    documents: number of documents in the corpus, those too short to be scored included.
    columns: name -> [D]; 'domain' holds indices into `domains`.
    domains: names of the files that the documents come from.
  """

  path: Path
  facts: dict[str, Any]
  documents: int
  columns: dict[str, np.ndarray]
  domains: tuple[str, ...]

  def __getattr__(self, name: str) -> np.ndarray:
    if name in COLUMNS:
      return self.columns[name]
    raise AttributeError(name)

  def __len__(self) -> int:
    return len(self.columns['id'])

  def __repr__(self) -> str:
    return f'Scores({len(self)} of {self.documents} documents of {self.path}; columns {", ".join(self.columns)})'


def _opened(path: Path):
  pa, pq = pyarrow()
  if not path.is_file():
    parts = path.with_name(path.name + '.parts')
    hint = f' A run that was not finished left {parts}: start it again.' if parts.is_dir() else ''
    raise errors.DataError(f'There is no file {str(path)!r}.{hint}')
  try:
    return pq.ParquetFile(path)
  except (pa.ArrowInvalid, OSError) as e:
    raise errors.DataError(f'{path} is not a readable Parquet file: {e}') from e


def read_facts(path: str | Path) -> dict[str, Any]:
  """Returns what a file's scores depend on. Raises DataError if it is not a file of scores; the message names it."""
  with _opened(Path(path)) as file:
    try:
      return json.loads((file.schema_arrow.metadata or {})[FACTS])
    except (KeyError, ValueError) as e:
      raise errors.DataError(f'{path} is not a file of scores (python -m jaxlm.analysis.direction score).') from e


def read_scores(path: str | Path) -> Scores:
  """Returns the scored documents of a file.

  Raises:
    DataError: the file does not exist, is truncated or corrupt, is not a file of scores, or holds no scored document,
      an id twice, or numbers that are not finite. The message names the file.
  """
  path, (pa, _) = Path(path), pyarrow()
  facts = read_facts(path)
  with _opened(path) as file:
    if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
      raise errors.DataError(f'{path} lacks the columns {", ".join(missing)}.')
    try:
      table = file.read(columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as e:
      raise errors.DataError(f'{path} is damaged: {e}') from e
  documents = len(table)
  table = table.filter(table['S'].is_valid())
  if not len(table):
    raise errors.DataError(f'{path} holds {documents} documents, and none was long enough to be scored.')
  domains = table['domain'].combine_chunks().dictionary_encode()
  columns = {name: table[name].to_numpy() for name in COLUMNS if name not in ('domain', 'digest')}
  columns['domain'] = domains.indices.to_numpy()
  columns['digest'] = table['digest'].combine_chunks()  # Stays an Arrow array: most digests are never read.
  for name in ('loss_forward', 'loss_reverse', 'S'):
    if len(bad := np.flatnonzero(~np.isfinite(columns[name]))):
      raise errors.DataError(f'{path}: {name} of document {columns["id"][bad[0]]} is {columns[name][bad[0]]}.')
  ids, counts = np.unique(columns['id'], return_counts=True)
  if (counts > 1).any():
    raise errors.DataError(f'{path} holds document {ids[counts > 1][0]} {counts.max()} times.')
  order = np.argsort(columns['id'])
  columns = {n: c.take(pa.array(order)) if n == 'digest' else c[order] for n, c in columns.items()}
  return Scores(path, facts, documents, columns, tuple(domains.dictionary.to_pylist()))


# ---- the texts behind the scores ----


def texts(scores: Scores, source: Iterable[tuple[str, str]], kept: np.ndarray) -> Iterable[tuple[int, str]]:
  """Yields (row of `scores`, text) for the rows where `kept` [D] is true, in the order of the corpus.

  Args:
    source: pairs (text, domain), as `sources.labelled` yields them.

  Raises:
    DataError: a text differs from the one that was scored, or the corpus has become shorter.
  """
  rows = np.flatnonzero(kept)
  wanted = iter(rows)
  row = next(wanted, None)
  for number, (text, _) in enumerate(source):
    if row is None:
      return
    if number != scores.id[row]:
      continue
    if text_digest(text) != scores.digest[int(row)].as_py():
      raise errors.DataError(
        f'Document {number} of the corpus is not the text that {scores.path} was made from: the corpus has changed. '
        'Score it again, or name the one that was scored with --corpus.'
      )
    yield int(row), text
    row = next(wanted, None)
  if row is not None:
    raise errors.DataError(f'The corpus ends before document {scores.id[row]}, which {scores.path} has a score of.')
