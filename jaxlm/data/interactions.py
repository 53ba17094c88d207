"""Interactions of users with items, and their split by time into histories for training, validation and test.

  log = interactions.k_core(log, user=5, item=5)
  histories = split(log, 'time')          # of each user: items in training, then validation, then test, in order of time

The recipe is that of AtSpeed's data (https://arxiv.org/abs/2410.05165): one interaction for each pair of user and item, a global split by
time, and no users with fewer than two training interactions.

Letters: n interactions, U users, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal
import zipfile

import numpy as np

from jaxlm import errors

if TYPE_CHECKING:
  from jaxtyping import Float, Int

Method = Literal['time', 'leave-one-out']
TRAIN, VALID, TEST = range(3)


@dataclasses.dataclass(frozen=True)
class Interactions:
  """A log: user `users[j]` met item `items[j]` at `times[j]`.

  Attributes:
    user_ids, item_ids: what users and items are called; interactions hold numbers of them.
  """

  users: Int[np.ndarray, ' n']
  items: Int[np.ndarray, ' n']
  times: Float[np.ndarray, ' n']
  user_ids: tuple[str, ...]
  item_ids: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.users)

  @classmethod
  def from_rows(cls, users: Sequence[str], items: Sequence[str], times: Sequence[float], seed: int = 0) -> Interactions:
    """Returns the log of some rows. Users are sorted by name, and items are in a random order that depends on their names and the seed.

    The order of first use would tell which items are new, and thus something about the test.

    Raises:
      DataError: there are no rows.
    """
    if not len(users):
      raise errors.DataError('There are no interactions.')
    user_ids, user_n = np.unique(np.asarray(users, object).astype(str), return_inverse=True)
    item_ids, item_n = np.unique(np.asarray(items, object).astype(str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(item_ids))
    place = np.argsort(order)
    times = np.asarray(times, np.float64)
    names = tuple(item_ids[order].tolist())
    return cls(user_n.reshape(-1), place[item_n.reshape(-1)], times, tuple(user_ids.tolist()), names)

  def kept(self, mask) -> Interactions:
    """Returns the log of the interactions in `mask` [n], without users and items that have none left."""
    users, user_n = np.unique(self.users[mask], return_inverse=True)
    items, item_n = np.unique(self.items[mask], return_inverse=True)
    names = lambda ids, numbers: tuple(ids[i] for i in numbers.tolist())
    return Interactions(
      user_n.reshape(-1), item_n.reshape(-1), self.times[mask], names(self.user_ids, users), names(self.item_ids, items)
    )


def unique(log: Interactions) -> Interactions:
  """Returns a log with one interaction for each pair of user and item, the latest one, sorted by user and time."""
  order = np.lexsort((log.times, log.users))
  pair = (log.users * (len(log.item_ids) + 1) + log.items)[order]
  _, last = np.unique(pair[::-1], return_index=True)
  keep = order[np.sort(len(pair) - 1 - last)]
  return dataclasses.replace(log, users=log.users[keep], items=log.items[keep], times=log.times[keep])


def k_core(log: Interactions, *, user: int = 0, item: int = 0) -> Interactions:
  """Returns the largest part of a log in which each user has at least `user` interactions and each item at least `item`.

  Raises:
    DataError: nothing is left.
  """
  while True:
    count = lambda of, n: np.bincount(of, minlength=n)[of]
    keep = (count(log.users, len(log.user_ids)) >= user) & (count(log.items, len(log.item_ids)) >= item)
    if not keep.any():
      raise errors.DataError(
        f'No interaction is left when each user needs {user} and each item {item} of them: ask for fewer.'
      )
    if keep.all():
      return log
    log = log.kept(keep)


@dataclasses.dataclass(frozen=True)
class Histories:
  """Items of each user in order of time, and which part each belongs to.

  Attributes:
    items: of all users in turn.
    offsets: [U + 1]: user u has items[offsets[u] : offsets[u + 1]].
    parts: `TRAIN`, `VALID` or `TEST` for each item.
    user_ids: what the users are called.
    num_items: number of items in all, also of those that no user has.
  """

  items: Int[np.ndarray, ' n']
  offsets: Int[np.ndarray, ' U+1']
  parts: Int[np.ndarray, ' n']
  user_ids: tuple[str, ...]
  num_items: int

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def of(self, user: int, *parts: int) -> np.ndarray:
    """Returns the items of a user that are in `parts`."""
    span = slice(self.offsets[user], self.offsets[user + 1])
    return self.items[span][np.isin(self.parts[span], parts)]

  @functools.cached_property
  def popularity(self) -> np.ndarray:
    """[I], int64: the number of training interactions of each item."""
    return np.bincount(self.items[self.parts == TRAIN], minlength=self.num_items)

  def examples(self, part: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns (history, items to find) of each user who has items in a held-out part.

    Validation: what follows the training items first. Test: all test items, after the items of training and validation.
    """
    known = (TRAIN,) if part == VALID else (TRAIN, VALID)
    found = [(self.of(u, *known), self.of(u, part)) for u in range(len(self))]
    found = [(history, truth[:1] if part == VALID else truth) for history, truth in found if len(truth)]
    return [history for history, _ in found], [truth for _, truth in found]

  @functools.cached_property
  def digest(self) -> str:
    """Digest of all histories, their parts and the number of items."""
    digest = hashlib.sha256(str(self.num_items).encode())
    for x in (self.items, self.offsets, self.parts):
      digest.update(np.ascontiguousarray(x, np.int64).tobytes())
    return digest.hexdigest()[:16]

  def save(self, path: str | Path) -> None:
    """Writes an .npz file."""
    np.savez_compressed(
      path,
      items=self.items.astype(np.int32),
      offsets=self.offsets,
      parts=self.parts.astype(np.int8),
      user_ids=np.array(self.user_ids, np.str_),
      num_items=self.num_items,
    )

  @classmethod
  def load(cls, path: str | Path) -> Histories:
    """Returns what `save` wrote. Raises DataError if it cannot be read."""
    try:
      with np.load(path, allow_pickle=False) as file:
        users = tuple(file['user_ids'].tolist())
        whole = lambda name: file[name].astype(np.int64)
        return cls(whole('items'), whole('offsets'), whole('parts'), users, int(file['num_items']))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
      raise errors.DataError(f'{path} is not a file of histories: {e}') from e


def split(
  log: Interactions,
  method: Method = 'time',
  shares: tuple[float, float] = (0.8, 0.9),
  *,
  least: int = 2,
) -> Histories:
  """Returns the histories of a log, with one interaction for each pair of user and item.

  Args:
    log: the interactions.
    method: 'time': two moments cut all interactions, so that nothing of the future is learned; users without later interactions give no
      example. 'leave-one-out': the last item of each user is test, and the one before it validation.
    shares: for 'time': shares of the interactions before the first and before the second moment.
    least: users with fewer training interactions are left out.

  Raises:
    DataError: no user is left.
  """
  log = unique(log)
  if method == 'time':
    cuts = np.sort(log.times)[[min(int(share * len(log)), len(log) - 1) for share in shares]]
    parts = (log.times >= cuts[0]).astype(np.int64) + (log.times >= cuts[1])
  elif method == 'leave-one-out':
    ends = np.cumsum(np.bincount(log.users, minlength=len(log.user_ids)))[log.users]
    parts = np.maximum(TEST + 1 - (ends - np.arange(len(log))), TRAIN)
  else:
    raise errors.unknown('split', method, ('time', 'leave-one-out'), errors.DataError)
  learned = np.bincount(log.users[parts == TRAIN], minlength=len(log.user_ids))
  keep = (learned >= least)[log.users]
  if not keep.any():
    raise errors.DataError(f'No user has {least} training interactions. The log has {len(log)} interactions in all.')
  users = np.unique(log.users[keep], return_inverse=True)
  offsets = np.concatenate([[0], np.cumsum(np.bincount(users[1].reshape(-1)))])
  names = tuple(log.user_ids[i] for i in users[0].tolist())
  return Histories(log.items[keep], offsets, parts[keep], names, len(log.item_ids))
