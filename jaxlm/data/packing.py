"""Batches as a pure function of (corpus, seed, step): resuming needs only the step number, no iterator state.

A corpus is one long sequence of tokens. Row r of step s is a window of length + 1 tokens. Windows have the stride `length`, so
each token is a target once per epoch:

  row(s, r) = tokens[w * length : (w + 1) * length + 1],   w = shuffle(seed, epoch)(s * batch_size + r)

The shuffle is a permutation that is computed for one index at a time (grain's index shuffle), so an epoch of any size needs no
memory, and no window is repeated or dropped.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import hashlib
import math
import queue
import threading
from typing import Any, Literal
import weakref

import numpy as np

from jaxlm import errors
from jaxlm.data.corpus import TokenCorpus

Packing = Literal['documents', 'concat']
"""'documents': documents in the same row do not see each other. 'concat': a row is treated as one text."""
Batch = dict[str, np.ndarray]
"""tokens, targets, segments, positions: int32 [B, T]; mask: float32 [B, T]."""


def _check(length: int, batch_size: int, mode: str) -> None:
  if length < 1 or batch_size < 1:
    raise ValueError(f'{length=} and {batch_size=} must be at least 1.')
  if mode not in ('documents', 'concat'):
    raise errors.unknown('packing mode', mode, ('documents', 'concat'))


def window_ids(corpus: TokenCorpus, index: int, length: int) -> np.ndarray:
  """Returns the int32 ids of window `index`: length + 1 of them, or fewer at the end of the corpus."""
  return np.asarray(corpus.tokens[index * length : (index + 1) * length + 1], np.int32)


def window(corpus: TokenCorpus, index: int, length: int, mode: Packing, ids_S: np.ndarray | None = None) -> Batch:
  """Returns row `index` as arrays [T]. If the corpus ends inside the row, the rest is 0, with mask 0 and segment 0.

  `ids_S`: ids to use instead of the window's ids in the corpus.
  """
  start = index * length
  ids_S = window_ids(corpus, index, length) if ids_S is None else ids_S
  n = len(ids_S) - 1  # inputs that have a target
  row = {name: np.zeros(length, np.int32) for name in ('tokens', 'targets', 'segments', 'positions')}
  row['mask'] = np.zeros(length, np.float32)
  if n < 1:
    return row
  row['tokens'][:n], row['targets'][:n] = ids_S[:-1], ids_S[1:]
  if mode == 'concat':
    row['segments'][:n], row['positions'][:n], row['mask'][:n] = 1, np.arange(n), 1
    return row
  # Document borders strictly inside the window; a document that began before the window gets positions from 0.
  first, last = np.searchsorted(corpus.offsets, (start, start + n), side='right')
  borders = np.asarray(corpus.offsets[first:last]) - start
  begins_S = np.zeros(n + 1, np.int32)
  begins_S[borders] = 1
  segments_S = 1 + np.cumsum(begins_S)
  starts_S = np.maximum.accumulate(np.where(begins_S, np.arange(n + 1), 0))
  row['segments'][:n] = segments_S[:n]
  row['positions'][:n] = np.arange(n) - starts_S[:n]
  # The first token of the next document is not a target of the last token of this one.
  row['mask'][:n] = segments_S[1:] == segments_S[:n]
  return row


def _stack(rows: list[Batch]) -> Batch:
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@dataclasses.dataclass(frozen=True)
class Batches:
  """Infinite shuffled training batches of a corpus."""

  corpus: TokenCorpus
  batch_size: int
  length: int
  seed: int = 0
  mode: Packing = 'documents'
  fraction: float = 1.0
  start: tuple[int, int] = dataclasses.field(default=(0, 0), kw_only=True)
  """(step, number of rows read before it): set when a run is resumed with another batch size."""

  def __post_init__(self):
    _check(self.length, self.batch_size, self.mode)
    if not 0 < self.fraction <= 1:
      raise ValueError(f'{self.fraction=} must be within (0, 1].')
    if not self.windows:
      fits = len(self.corpus.tokens) - 1
      hint = f'choose a length of at most {fits}' if fits > 0 else 'give more text'
      raise errors.DataError(
        f'The corpus holds {len(self.corpus.tokens)} tokens, but one window needs length + 1 = {self.length + 1}: {hint}.'
      )

  @property
  def windows(self) -> int:
    """Number of windows in an epoch; an incomplete window at the end of the corpus is left out."""
    return math.ceil(self.all_windows * self.fraction)

  @property
  def all_windows(self) -> int:
    return max(0, len(self.corpus.tokens) - 1) // self.length

  @functools.cached_property
  def used_windows(self) -> np.ndarray:
    """[windows] int64, the corpus indices of the windows that an epoch has, in increasing order."""
    if self.fraction == 1:
      return np.arange(self.all_windows)
    return np.sort([int(self._part[i]) for i in range(self.windows)])

  @property
  def steps_per_epoch(self) -> float:
    return self.windows / self.batch_size

  @functools.cached_property
  def _order(self):
    import grain  # takes a second to import

    # grain shuffles epoch e with seed + e. The seed is hashed, because seed 1 would otherwise repeat the epochs of seed 0.
    seed = int.from_bytes(hashlib.blake2b(str(int(self.seed)).encode(), digest_size=4).digest(), 'big')
    return grain.MapDataset.range(self.windows).shuffle(seed=seed).repeat()

  @functools.cached_property
  def _part(self):
    """Order of all windows; the first `windows` of them are used. It is the same for every seed and epoch."""
    import grain

    return grain.MapDataset.range(self.all_windows).shuffle(seed=0)

  def window_index(self, number: int) -> int:
    """Returns the index in the corpus of the window of row `number`, counted over all steps from 0."""
    index = int(self._order[number])
    return index if self.fraction == 1 else int(self._part[index])

  def row(self, number: int) -> Batch:
    return self.row_of_window(self.window_index(number))

  def row_of_window(self, index: int) -> Batch:
    """Returns the row that is made of the window with this index in the corpus."""
    return window(self.corpus, index, self.length, self.mode)

  def rows_before(self, step: int) -> int:
    """Returns the number of rows read before a step."""
    return self.start[1] + (int(step) - self.start[0]) * self.batch_size

  def _numbers(self, step: int, rows: slice | None) -> range:
    first = self.rows_before(step)
    return range(first, first + self.batch_size)[rows or slice(None)]

  def window_indices(self, step: int, rows: slice | None = None) -> list[int]:
    """Returns the corpus indices of the windows in a batch."""
    return [self.window_index(number) for number in self._numbers(step, rows)]

  def batch(self, step: int, rows: slice | None = None) -> Batch:
    """Returns batch `step`, or only the slice `rows` of it, which one of several processes reads."""
    if step < self.start[0]:
      raise ValueError(f'{step=} must not be less than {self.start[0]}.')
    numbers = self._numbers(step, rows)
    if not numbers:
      raise ValueError(f'{rows=} selects none of {self.batch_size} rows.')
    return _stack([self.row(number) for number in numbers])


def make_batches(
  corpus: TokenCorpus,
  *,
  batch_size: int,
  length: int,
  seed: int = 0,
  mode: Packing = 'documents',
  fraction: float = 1.0,
) -> Batches:
  """Returns the batches of a corpus, or of a random `fraction` of its windows: `make_batches(...).batch(step)`.

  Raises:
    DataError: the corpus is shorter than one window of length + 1 tokens.
  """
  return Batches(corpus, batch_size, length, seed, mode, fraction)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """Batches of a whole corpus, in order, its last incomplete window included. Missing rows and tokens have mask 0."""

  corpus: TokenCorpus
  batch_size: int
  length: int
  mode: Packing = 'documents'
  max_batches: int | None = None

  def __post_init__(self):
    _check(self.length, self.batch_size, self.mode)
    if len(self.corpus.tokens) < 2:
      raise errors.DataError(f'An evaluation needs 2 tokens or more; this corpus holds {len(self.corpus.tokens)}.')

  @property
  def windows(self) -> int:
    return -(-(len(self.corpus.tokens) - 1) // self.length)

  def __len__(self) -> int:
    n = -(-self.windows // self.batch_size)
    return n if self.max_batches is None else min(n, self.max_batches)

  def row(self, index: int) -> Batch:
    return window(self.corpus, index, self.length, self.mode)

  def batch(self, step: int, rows: slice | None = None) -> Batch:
    if not 0 <= step < len(self):
      raise IndexError(f'{step=} of {len(self)} evaluation batches.')
    indices = (step * self.batch_size + row for row in range(self.batch_size)[rows or slice(None)])
    return _stack([self.row(i) for i in indices])

  def __iter__(self) -> Iterator[Batch]:
    return (self.batch(step) for step in range(len(self)))


def eval_batches(
  corpus: TokenCorpus,
  *,
  batch_size: int,
  length: int,
  mode: Packing = 'documents',
  max_batches: int | None = None,
) -> EvalBatches:
  """Returns a re-iterable over the whole corpus in order, or over its first `max_batches` batches."""
  return EvalBatches(corpus, batch_size, length, mode, max_batches)


class Prefetch:
  """An iterator whose items a background thread computes in advance. Stop it with `close()`, or use it in a `with`."""

  def __init__(self, make: Callable[[int], Any], steps: Iterator[int], depth: int):
    self._queue: queue.Queue = queue.Queue(maxsize=depth)
    self._stop = threading.Event()
    self._done = False
    # The thread holds no reference to self, so an iterator that is no longer used is collected, and its thread ends.
    self._thread = threading.Thread(
      target=_work, args=(make, steps, self._queue, self._stop), name='jaxlm-prefetch', daemon=True
    )
    weakref.finalize(self, self._stop.set)
    self._thread.start()

  def __iter__(self):
    return self

  def __next__(self):
    if self._done:
      raise StopIteration
    item, error = self._queue.get()
    if error is not None:
      self._done = True
      self.close()
      raise error
    return item

  def close(self) -> None:
    """Stops the thread and waits until it has ended."""
    self._done = True
    self._stop.set()
    self._thread.join()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _work(make, steps, out: queue.Queue, stop: threading.Event) -> None:
  def put(item):
    while not stop.is_set():
      try:
        return out.put(item, timeout=0.1)
      except queue.Full:
        continue

  try:
    for step in steps:
      if stop.is_set():
        return
      put((make(step), None))
    put((None, StopIteration()))
  except BaseException as e:  # noqa: BLE001  __next__ raises it again
    put((None, e))


def prefetch(
  batches: Any,
  start_step: int = 0,
  stop_step: int | None = None,
  *,
  rows: slice | None = None,
  transform: Callable[[Batch], Any] | None = None,
  depth: int = 2,
) -> Prefetch:
  """Returns an iterator over batches start_step .. stop_step - 1 (None: infinite) that a thread computes in advance.

  Args:
    batches: object with a method batch(step), or batch(step, rows) if `rows` is given.
    transform: function that the thread applies to each batch, for example device_put.
    depth: largest number of batches that wait in the queue.
  """

  def make(step):
    batch = batches.batch(step) if rows is None else batches.batch(step, rows)
    return batch if transform is None else transform(batch)

  def steps():
    step = start_step
    while stop_step is None or step < stop_step:
      yield step
      step += 1

  return Prefetch(make, steps(), depth)
