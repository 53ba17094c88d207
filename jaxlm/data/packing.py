"""Batches as a pure function of (corpus, seed, step): resuming needs the step number and no iterator state.

A corpus is one long row of tokens. Row r of step s is a window of length + 1 tokens, at stride `length`, so that each
token is a target once per epoch:

  row(s, r) = tokens[w * length : (w + 1) * length + 1],   w = shuffle(seed, epoch)(s * batch_size + r)

The shuffle is a permutation computed for one index at a time (grain's index shuffle): an epoch of any size costs no
memory and repeats or drops no window.
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
"""'documents': a row's documents do not see each other. 'concat': a row is one text, across document borders."""
Batch = dict[str, np.ndarray]
"""tokens, targets, segments, positions: int32 [B, T]; mask: float32 [B, T]."""


def _check(length: int, batch_size: int, mode: str) -> None:
  if length < 1 or batch_size < 1:
    raise ValueError(f'{length=} and {batch_size=} must be at least 1.')
  if mode not in ('documents', 'concat'):
    raise errors.unknown('packing mode', mode, ('documents', 'concat'))


def window_ids(corpus: TokenCorpus, index: int, length: int) -> np.ndarray:
  """Returns the int32 ids of window `index`, length + 1 of them or as many as are left."""
  return np.asarray(corpus.tokens[index * length : (index + 1) * length + 1], np.int32)


def window(corpus: TokenCorpus, index: int, length: int, mode: Packing, ids_S: np.ndarray | None = None) -> Batch:
  """Returns row `index` as arrays [T]; a corpus that ends inside it leaves zeros with mask 0 and segment 0.

  `ids_S`: what to read instead of the window's own ids.
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
  # Borders strictly inside the window; a document that began before it starts at its first token.
  first, last = np.searchsorted(corpus.offsets, (start, start + n), side='right')
  borders = np.asarray(corpus.offsets[first:last]) - start
  begins_S = np.zeros(n + 1, np.int32)
  begins_S[borders] = 1
  segments_S = 1 + np.cumsum(begins_S)
  starts_S = np.maximum.accumulate(np.where(begins_S, np.arange(n + 1), 0))
  row['segments'][:n] = segments_S[:n]
  row['positions'][:n] = np.arange(n) - starts_S[:n]
  # What the next document begins with is not to be learnt from the end of this one.
  row['mask'][:n] = segments_S[1:] == segments_S[:n]
  return row


def _stack(rows: list[Batch]) -> Batch:
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@dataclasses.dataclass(frozen=True)
class Batches:
  """Shuffled training batches of a corpus, without end."""

  corpus: TokenCorpus
  batch_size: int
  length: int
  seed: int = 0
  mode: Packing = 'documents'
  fraction: float = 1.0
  start: tuple[int, int] = dataclasses.field(default=(0, 0), kw_only=True)
  """(step, rows read before it): a run that goes on with another batch size begins there, not at step * batch_size."""

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
    """Windows in an epoch; a ragged tail of the corpus is left out."""
    return math.ceil(self._all_windows * self.fraction)

  @property
  def _all_windows(self) -> int:
    return max(0, len(self.corpus.tokens) - 1) // self.length

  @property
  def steps_per_epoch(self) -> float:
    return self.windows / self.batch_size

  @functools.cached_property
  def _order(self):
    import grain  # takes a second to import

    # grain shuffles epoch e with seed + e: hashed, or else seed 1 would repeat the epochs of seed 0.
    seed = int.from_bytes(hashlib.blake2b(str(int(self.seed)).encode(), digest_size=4).digest(), 'big')
    return grain.MapDataset.range(self.windows).shuffle(seed=seed).repeat()

  @functools.cached_property
  def _part(self):
    """The part of the corpus that is used: the same one for every seed, and in every epoch."""
    import grain

    return grain.MapDataset.range(self._all_windows).shuffle(seed=0)

  def window_index(self, number: int) -> int:
    """Returns which window of the corpus a row is, by its number among all rows from step 0 on."""
    index = int(self._order[number])
    return index if self.fraction == 1 else int(self._part[index])

  def row(self, number: int) -> Batch:
    return window(self.corpus, self.window_index(number), self.length, self.mode)

  def rows_before(self, step: int) -> int:
    """Returns how many rows have been read before a step."""
    return self.start[1] + (int(step) - self.start[0]) * self.batch_size

  def _numbers(self, step: int, rows: slice | None) -> range:
    first = self.rows_before(step)
    return range(first, first + self.batch_size)[rows or slice(None)]

  def window_indices(self, step: int, rows: slice | None = None) -> list[int]:
    """Returns which windows of the corpus the rows of a batch are."""
    return [self.window_index(number) for number in self._numbers(step, rows)]

  def batch(self, step: int, rows: slice | None = None) -> Batch:
    """Returns batch `step`, or only some of its rows: what one process of several needs to read."""
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
  """A corpus once, in order, its tail included; what is missing from the last batch is padding with mask 0."""

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
  """An iterator whose items a background thread makes ahead. Stop it with `close()`, or use it in a `with`."""

  def __init__(self, make: Callable[[int], Any], steps: Iterator[int], depth: int):
    self._queue: queue.Queue = queue.Queue(maxsize=depth)
    self._stop = threading.Event()
    self._done = False
    # The thread knows nothing of self, so that an iterator nobody holds any more is collected and its thread ends.
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
    """Ends the thread; waits until it is gone."""
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
  except BaseException as e:  # noqa: BLE001  raised again where the batch is asked for
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
  """Returns an iterator over batches start_step, start_step + 1, ... (before stop_step), made ahead by a thread.

  Args:
    batches: anything with batch(step), and batch(step, rows) when `rows` is given.
    transform: applied to each batch in the thread: device_put, for one.
    depth: batches that wait at most.
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
