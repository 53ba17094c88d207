"""Opens interaction logs with their items by a spec, as the data of a recommender.

data = open_data('movielens-100k')                     # what python -m jaxlm.data.fetch movielens-100k brought
data = open_data('made-small')                         # generated, see `jaxlm.data.made_interactions`
data = open_data('log.csv', items='items.jsonl')       # see `jaxlm.data.interaction_files`
data = open_data('tfds:movielens/100k-ratings')
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Literal

import numpy as np

from jaxlm import errors
from jaxlm.data import fetch, interaction_files, interactions, made_interactions
from jaxlm.data.interaction_files import Columns
from jaxlm.data.interactions import Interactions
from jaxlm.data.items import Items

Missing = Literal['error', 'skip']
MADE = {f'made-{name}': size for name, size in made_interactions.SIZES.items()}
FETCHED = ('movielens-100k',)


@dataclasses.dataclass(frozen=True)
class Data:
  """A log, and the items that it speaks of, in the order of their numbers."""

  log: Interactions
  items: Items


def open_data(
  source: str,
  *,
  items: str = '',
  columns: Columns = Columns(),
  least_rating: float | None = None,
  min_user: int = 0,
  min_item: int = 0,
  missing: Missing = 'error',
  seed: int = 0,
  download: bool = False,
) -> Data:
  """Returns interactions and items.

  Args:
    source: 'made-tiny', 'made-small', 'made-medium', 'movielens-100k', 'tfds:NAME[:SPLIT]', or files (.csv .tsv .jsonl .parquet .inter)
      separated by commas.
    items: a table of items, given in the same way; '': that of the source, if it has one.
    columns: names of the columns.
    least_rating: interactions with a lower rating are left out; None: all count.
    min_user, min_item: smallest numbers of interactions of each user and each item; others are left out until all have enough.
    missing: what to do with items that the table does not have.
    seed: seed of generated data, and of the order of the items.
    download: whether TFDS may download and prepare a missing data set.

  Raises:
    DataError: something does not exist, cannot be read, or holds nothing.
  """
  if source in MADE:
    made = made_interactions.generate(MADE[source], seed)
    log = interactions.k_core(made.log, user=min_user, item=min_item) if min_user or min_item else made.log
    return Data(log, _of(log, made.items, 'error')[1])
  if source in FETCHED:
    folder = fetch.verified(source)
    if folder is None:
      raise errors.DataError(f'{source!r} has not been fetched yet: python -m jaxlm.data.fetch {source}')
    (path,) = folder.glob('*.inter')
    source, items = str(path), items or str(path.with_suffix('.item'))
  elif source.startswith('made-'):
    raise errors.unknown('generated data set', source, MADE, errors.DataError)
  rows = interaction_files.read_log(source, columns, least_rating=least_rating, download=download)
  log = Interactions.from_rows(rows.users, rows.items, rows.times, seed)
  if items:
    log, table = _of(log, interaction_files.read_items(items, columns, download=download), missing)
  else:
    table = _titles_of_log(source, columns, log, download)
  if min_user or min_item:
    log = interactions.k_core(interactions.unique(log), user=min_user, item=min_item)
    log, table = _of(log, table, 'error')
  return Data(log, table)


def _titles_of_log(source: str, columns: Columns, log: Interactions, download: bool) -> Items:
  """Returns the items of a log that may have a column of titles."""
  first = next(interaction_files.records(source, download), None)
  example, where = first if first is not None else ({}, '')
  titled = interaction_files.column('title', columns.title, interaction_files.TITLE, example, where, needed=False)
  if not titled:
    return Items(log.item_ids, log.item_ids, log.item_ids)
  only = dataclasses.replace(columns, text=columns.text or (titled,))
  return _of(log, interaction_files.read_items(source, only, download=download), 'error')[1]


def _of(log: Interactions, table: Items, missing: Missing) -> tuple[Interactions, Items]:
  """Returns the log and its items from a table.

  Raises:
    DataError: the table lacks items of the log, and they are not to be skipped.
  """
  log = without(log, table.ids, missing, 'the table of items')
  number = {name: i for i, name in enumerate(table.ids)}
  return log, table.taken([number[name] for name in log.item_ids])


def without(log: Interactions, known: Sequence[str], missing: Missing, where: str) -> Interactions:
  """Returns a log whose items are all among `known`.

  Raises:
    DataError: others are there and not to be skipped, or nothing is left.
  """
  there = set(known)
  lost = [name for name in log.item_ids if name not in there]
  if not lost:
    return log
  if missing == 'error':
    raise errors.DataError(
      f'{len(lost)} of {len(log.item_ids)} items of the log are not in {where}: {", ".join(lost[:3])}{", ..." if lost[3:] else ""}. Add '
      'them, or leave their interactions out: --data.missing skip.'
    )
  keep = [log.item_ids[i] in there for i in log.items]
  if not any(keep):
    raise errors.DataError(f'No item of the log is in {where}. Do the ids of both mean the same items?')
  return log.kept(np.array(keep))
