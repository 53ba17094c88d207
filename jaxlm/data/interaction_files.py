"""Reads interaction logs and item tables: CSV, TSV, JSON Lines, Parquet, atomic files of RecBole (.inter, .item), TFDS.

The columns of users, items, times and ratings are found by the names that published data use, or are named. Every error is a DataError
that names the file and the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import datetime
import json
import math
from pathlib import Path
from typing import Any

from jaxlm import errors
from jaxlm.data import labelled_files, reading, tfds_source
from jaxlm.data.items import Items
from jaxlm.data.labelled_files import Record

USER = ('user_id', 'userid', 'user', 'uid', 'reviewerid', 'reviewer_id', 'session_id')
ITEM = ('item_id', 'itemid', 'item', 'movie_id', 'movieid', 'parent_asin', 'asin', 'product_id', 'iid', 'id')
TIME = ('timestamp', 'time', 'unixreviewtime', 'ts', 'date', 'datetime')
RATING = ('rating', 'user_rating', 'overall', 'stars', 'score')
TITLE = ('title', 'movie_title', 'item_title', 'name', 'item_name')
ATOMIC = ('.inter', '.item')
"""Files of RecBole: tables with tabs, whose first line has name:type of each column."""


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of columns; '': found by the names that published data use.

  Attributes:
    text: columns of the item table that describe an item besides its title; (): all columns of text.
  """

  user: str = ''
  item: str = ''
  time: str = ''
  rating: str = ''
  title: str = ''
  text: tuple[str, ...] = ()


@dataclasses.dataclass
class Rows:
  """Rows of a log, in the order of the file."""

  users: list[str]
  items: list[str]
  times: list[float]

  def __len__(self) -> int:
    return len(self.users)


def records(spec: str, download: bool = False) -> Iterator[Record]:
  """Yields the records, ({column: value}, words that say where), of files separated by commas, or of tfds:NAME[:SPLIT]."""
  if spec.startswith('tfds:'):
    name, split = tfds_source.parse(spec)
    yield from labelled_files.tfds_records(tfds_source.builder(name, download=download), name, split or 'train')
    return
  names = [spec] if Path(spec).expanduser().is_file() else [part.strip() for part in spec.split(',')]
  for name in names:
    path = Path(name).expanduser()
    if path.suffix in ATOMIC and path.is_file():
      yield from _atomic(path)
    else:
      for one in labelled_files.find(name):
        yield from labelled_files.records(one)


def _atomic(path: Path) -> Iterator[Record]:
  names: list[str] = []
  for number, line in reading.numbered_lines(path):
    cells, where = line.rstrip('\n').split('\t'), f'{path}, line {number}'
    if not names:
      names = [cell.split(':')[0] for cell in cells]
    elif len(cells) != len(names):
      raise errors.DataError(f'{where}: found {len(cells)} columns, and the first line has {len(names)}.')
    else:
      yield dict(zip(names, cells)), where


def column(kind: str, given: str, known: Iterable[str], there: Iterable[str], where: str, needed: bool = True) -> str:
  """Returns the name of a column among those that are there, '' if it is not needed and not there.

  Raises:
    DataError: the column is not there.
  """
  there = [name for name in there if isinstance(name, str)]
  if given:
    if given not in there:
      raise errors.unknown(f'column of --data.{kind}, in {where},', given, there, errors.DataError)
    return given
  lower = {name.lower(): name for name in reversed(there)}
  found = next((lower[name] for name in known if name in lower), '')
  if needed and not found:
    raise errors.DataError(
      f'{where}: which column is the {kind} is not known. There are {", ".join(there)}: name one with --data.{kind}.'
    )
  return found


def read_log(
  spec: str, columns: Columns = Columns(), *, least_rating: float | None = None, download: bool = False
) -> Rows:
  """Returns the rows of a log whose rating is at least `least_rating`; without a column of times, the lines are in order of time.

  Raises:
    DataError: nothing is there, a column is missing, or a row has no user, no item, or a time or rating that is not a number.
  """
  rows, names = Rows([], [], []), None
  for number, (example, where) in enumerate(records(spec, download)):
    if names is None:
      names = _columns_of_log(columns, example, where, least_rating is not None)
    user, item, time, rating = names
    if rating and _number(example, rating, where) < least_rating:
      continue
    rows.users.append(_name(example, user, where))
    rows.items.append(_name(example, item, where))
    rows.times.append(_time(example, time, where) if time else float(number))
  if not rows:
    rated = '' if least_rating is None else f' with a rating of at least {least_rating}'
    raise errors.DataError(f'{spec!r} holds no interactions{rated}.')
  return rows


def _columns_of_log(columns: Columns, example: dict[str, Any], where: str, rated: bool) -> tuple[str, str, str, str]:
  """Returns the columns of user, item, time and rating; '' for a time that is not there, and for a rating that is not needed."""
  user, item = column('user', columns.user, USER, example, where), column('item', columns.item, ITEM, example, where)
  time = column('time', columns.time, TIME, example, where, needed=False)
  return user, item, time, column('rating', columns.rating, RATING, example, where) if rated else ''


def _name(example: dict[str, Any], name: str, where: str) -> str:
  value = example.get(name)
  text = '' if value is None else str(value).strip()
  if not text:
    raise errors.DataError(f'{where}: the column {name!r} is empty, so the interaction has no {name}. Remove the line.')
  return text


def _number(example: dict[str, Any], name: str, where: str) -> float:
  value = example.get(name)
  try:
    found = float(value)
  except (TypeError, ValueError):
    found = math.nan
  if not math.isfinite(found):
    raise errors.DataError(f'{where}: the column {name!r} is {errors.shown(value)}; expected a number.')
  return found


def _time(example: dict[str, Any], name: str, where: str) -> float:
  value = example.get(name)
  if isinstance(value, datetime.datetime):
    return value.timestamp()
  if isinstance(value, datetime.date):  # As an ISO date: the midnight with which the day begins.
    return datetime.datetime(value.year, value.month, value.day).timestamp()
  if isinstance(value, str) and not value.strip().replace('.', '', 1).lstrip('-').isdigit():
    try:
      return datetime.datetime.fromisoformat(value.strip()).timestamp()
    except ValueError:
      pass  # `_number` says what is wrong.
  return _number(example, name, where)


def read_items(spec: str, columns: Columns = Columns(), *, download: bool = False) -> Items:
  """Returns the items of a table: titles, and texts made of the title and the other columns of text. The first row of an id counts.

  Raises:
    DataError: nothing is there, a column is missing, or a row has no id.
  """
  found: dict[str, tuple[str, str]] = {}
  names = None
  for example, where in records(spec, download):
    if names is None:
      item = column('item', columns.item, ITEM, example, where)
      title = column('title', columns.title, TITLE, example, where, needed=False)
      for name in columns.text:
        column('text', name, (), example, where)
      names = item, title
    item, title = names
    key = _name(example, item, where)
    if key in found:
      continue
    called = _text(example.get(title)) if title else ''
    others = columns.text or [name for name in example if name not in (item, title)]
    words = [called, *(_text(example.get(name)) for name in others)]
    found[key] = called or key, ' '.join(filter(None, dict.fromkeys(words))) or key
  if not found:
    raise errors.DataError(f'{spec!r} holds no items.')
  return Items(tuple(found), tuple(t for t, _ in found.values()), tuple(x for _, x in found.values()))


def _text(value: Any) -> str:
  """Returns a value as words for a description; numbers are no words."""
  if isinstance(value, list | tuple):
    return ' '.join(filter(None, map(_text, value)))
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  return value.strip() if isinstance(value, str) else ''


def read_ids(path: str | Path) -> dict[str, tuple[str, ...]]:
  """Returns the identifiers of a JSON file {item id: [token, ...]}, such as the files of LC-Rec.

  Raises:
    DataError: it cannot be read, has no items, or an identifier is no list of tokens.
  """
  try:
    found = json.loads(Path(path).expanduser().read_text(encoding='utf-8'))
  except (OSError, ValueError) as e:
    raise errors.DataError(f'{path} is not a JSON file of identifiers: {e}') from e
  if not isinstance(found, dict) or not found:
    raise errors.DataError(f'{path} holds no identifiers; expected an object {{item id: [token, ...]}}.')
  for item, tokens in found.items():
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str | int) for t in tokens):
      raise errors.DataError(
        f'{path}: the identifier of {item!r} is {errors.shown(tokens)}; expected a list of tokens.'
      )
  return {item: tuple(map(str, tokens)) for item, tokens in found.items()}
