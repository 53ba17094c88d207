"""Runs the cases of a benchmark one by one within a time limit, and writes each result to a file at once.

A *case* is a function that returns its measurements, with labels that identify it. If a case raises an error, the error is its
result, and the next case runs. If a case hangs, for example in a compiler, the process ends when the time is up, and the file keeps
the earlier results.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import threading
import time
import traceback
from typing import Any

from jaxlm.io.atomic import write_atomically

OUT_OF_TIME = 3
"""Exit code of a process that ended because a case did not return in time."""


@dataclasses.dataclass(frozen=True)
class Case:
  """One measurement of a table."""

  table: str
  labels: Mapping[str, Any]
  """Labels that identify the case: the first columns of its row."""
  run: Callable[[], Mapping[str, Any]]
  """Returns the other columns."""


class Record:
  """A JSON file that grows case by case: {'machine', 'setting', 'rows': [{'part', 'table', ..., 'seconds'}], 'parts'}.

  With path None nothing is written.
  """

  def __init__(self, path: Path | None, machine: Mapping[str, Any], setting: Mapping[str, Any], seconds: float):
    self.path, self.end = path, time.monotonic() + seconds
    self.seconds = seconds
    self.contents: dict[str, Any] = {'machine': machine, 'setting': setting, 'parts': {}, 'rows': []}
    self.now = 'the start'
    self._lock = threading.Lock()
    self._write()

  @property
  def left(self) -> float:
    return self.end - time.monotonic()

  def add(self, row: dict[str, Any]) -> None:
    with self._lock:
      self.contents['rows'].append(row)
      self._write()
    print(shown(row), flush=True)

  def note_part(self, name: str, seconds: float) -> None:
    with self._lock:
      self.contents['parts'][name] = round(seconds, 1)
      self._write()
    print(f'-- {name}: {seconds:.1f} s; {self.left:.0f} s left', flush=True)

  def run_part(self, part: str, cases: Callable[[], Iterable[Case]]) -> None:
    """Runs the cases of a part. An error while the cases are made is a row too."""
    start = time.monotonic()
    try:
      for case in cases():
        self._run(part, case)
    except Exception as error:
      self.add({'part': part, 'table': part, **failure(error)})
    self.note_part(part, time.monotonic() - start)

  def _run(self, part: str, case: Case) -> None:
    self.now = f'{part}, {case.table}, {dict(case.labels)}'
    row: dict[str, Any] = {'part': part, 'table': case.table, **case.labels}
    if self.left <= 0:
      self.add(row | {'skipped': f'the {self.seconds:.0f} seconds were over'})
      return
    start = time.monotonic()
    try:
      row |= case.run()
    except Exception as error:
      row |= failure(error)
    self.add(row | {'seconds': round(time.monotonic() - start, 2)})

  @contextlib.contextmanager
  def watching(self, grace: float = 20.0) -> Iterator[None]:
    """Ends the process if the block has not returned `grace` seconds after the end."""

    def end():
      with self._lock:
        self.contents['rows'].append({'part': 'none', 'table': 'none', 'error': f'Ended in {self.now}.'})
        self._write()
      print(f'Time is up; ended in {self.now}.', flush=True)
      os._exit(OUT_OF_TIME)  # sys.exit would wait for a compiler that hangs.

    timer = threading.Timer(max(self.left, 0) + grace, end)
    timer.daemon = True
    timer.start()
    try:
      yield
    finally:
      timer.cancel()

  def _write(self) -> None:
    if self.path is not None:
      write_atomically(self.path, json.dumps(self.contents, indent=1, default=float) + '\n')


def failure(error: Exception) -> dict[str, str]:
  where = traceback.extract_tb(error.__traceback__)[-1]
  message = f'{type(error).__name__}: {error}'
  return {'error': message[:1500], 'where': f'{Path(where.filename).name}:{where.lineno}'}


def shown(row: Mapping[str, Any]) -> str:
  """Returns a row as one line."""
  number = lambda v: f'{v:.4g}' if isinstance(v, float) else str(v)
  hidden = ('part', 'table', 'where')
  return f'{row["part"]} | {row["table"]} | ' + ', '.join(f'{k} {number(v)}' for k, v in row.items() if k not in hidden)
