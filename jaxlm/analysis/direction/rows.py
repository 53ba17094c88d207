"""Packs documents into rows for both directions, and sums the token losses of each document. Only NumPy is used.

  forward   BOS x1 x2 ... xn EOS          reverse   BOS xn ... x2 x1 EOS

A document is split into chunks first, and then each chunk is reversed, so the same targets are scored in both directions
(https://arxiv.org/abs/2410.09817). Every chunk begins with BOS, and the last one ends with EOS. Chunks in the same row do
not see each other. Letters: S = T + 1 ids of a row; the first T are inputs and the last T are targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxlm.data.reverse import reverse

if TYPE_CHECKING:
  from jaxtyping import Int

Rows = dict[str, np.ndarray]
"""tokens, targets, segments, positions: int32 [B, T]. Segment 0 is padding; losses of its targets are ignored."""
Nll = Callable[[Rows, Rows], tuple[np.ndarray, np.ndarray]]
"""(forward rows, the same rows reversed) -> -log p of each target in both directions, float [B, T]. Scoring needs only this
function of a model."""


@dataclasses.dataclass(frozen=True)
class Ends:
  """Ids before and after the content of a chunk. They are never reversed.

  Attributes:
    forward, reverse: the first ids of a chunk in each direction: BOS, and perhaps a token that names the direction.
    eos: the last id of a document's last chunk.
  """

  forward: tuple[int, ...]
  reverse: tuple[int, ...]
  eos: int

  @property
  def room(self) -> int:
    """Number of ids before the content, in the direction that needs more."""
    return max(len(self.forward), len(self.reverse))


@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums of one document's losses over its targets (content and EOS).

  Attributes:
    tokens: number of targets.
    forward, reverse: sums of -log p, in nats.
    square: sum over targets of (forward - reverse loss)^2, for the standard error of S.
  """

  tokens: int
  forward: float
  reverse: float
  square: float


@dataclasses.dataclass(frozen=True)
class _Chunk:
  document: int
  content: np.ndarray
  last: bool

  @property
  def targets(self) -> int:
    return len(self.content) + self.last


def cut(document: Int[np.ndarray, ' n'], size: int) -> list[np.ndarray]:
  """Splits a document's content into chunks of `size` tokens; the last may be shorter. An empty document is one empty chunk."""
  return [document[i : i + size] for i in range(0, max(len(document), 1), size)]


def chunk_sizes(tokens: int, ends: Ends, length: int) -> list[int]:
  """Returns the length in ids of each chunk of a document with `tokens` tokens."""
  size = length - ends.room
  whole, rest = divmod(max(tokens - 1, 0), size)  # -1: the last chunk is never empty.
  return [ends.room + size] * whole + [ends.room + (rest + 1 if tokens else 0) + 1]


def place(sizes: Sequence[int], width: int) -> list[tuple[int, int]]:
  """Returns (row, first slot) of each chunk, by first-fit decreasing packing into rows of `width` slots."""
  free = np.full(len(sizes), width)
  places = [(0, 0)] * len(sizes)
  for i in np.argsort(-np.asarray(sizes, int), kind='stable'):
    row = int(np.argmax(free >= sizes[i]))
    places[i] = row, int(width - free[row])
    free[row] -= sizes[i]
  return places


def pooled(
  documents: Sequence[Int[np.ndarray, ' n']],
  nll: Nll,
  ends: Ends,
  *,
  batch_size: int,
  length: int,
  progress: Callable[[int], None] = lambda targets: None,
) -> list[Sums]:
  """Returns the losses of documents in both directions.

  Args:
    documents: ids of the content, without BOS and EOS.
    nll: computes the losses of rows; it is only called with rows of shape [batch_size, length].
    ends: ids before and after the content.
    batch_size: rows of a batch.
    length: input tokens of a row, T; at most the model's context.
    progress: called after each batch with its number of targets.

  Raises:
    ValueError: `length` leaves no room for content, or a loss is not finite.
  """
  size = length - ends.room
  if size < 1:
    raise ValueError(
      f'{length=} must be at least {ends.room + 1}: {ends.room} for the ids before a text, 1 for the text.'
    )
  chunks = []
  for number, document in enumerate(documents):
    parts = cut(np.asarray(document, np.int32), size)
    chunks += [_Chunk(number, part, last=i == len(parts) - 1) for i, part in enumerate(parts)]
  places = place([ends.room + chunk.targets for chunk in chunks], length + 1)
  batches: dict[int, list] = {}
  for chunk, (row, start) in zip(chunks, places):
    batches.setdefault(row // batch_size, []).append((chunk, row % batch_size, start))
  sums = np.zeros((len(documents), 4))
  for placed, (forward_BT, reverse_BT) in _ahead(sorted(batches.items()), nll, ends, batch_size, length):
    for chunk, row, start in placed:
      sums[chunk.document] += _sums(chunk, forward_BT[row], reverse_BT[row], start, ends)
    progress(sum(chunk.targets for chunk, _, _ in placed))
  if not np.isfinite(sums).all():
    raise ValueError('Losses are not finite: activations of the model overflow, or its parameters are not numbers.')
  return [Sums(int(n), *map(float, rest)) for n, *rest in sums]


def _ahead(batches, nll: Nll, ends: Ends, batch_size: int, length: int) -> Iterator[tuple[list, tuple]]:
  """Yields (placed chunks, losses) of each batch. The next batch is dispatched before the losses of this one are read."""
  waiting = []
  for _, placed in batches:
    shape = placed, batch_size, length + 1
    waiting.append(
      (placed, nll(lay(*shape, ends.forward, ends.eos), lay(*shape, ends.reverse, ends.eos, reversed=True)))
    )
    if len(waiting) == 2:
      placed, losses = waiting.pop(0)
      yield placed, tuple(np.asarray(x) for x in losses)
  for placed, losses in waiting:
    yield placed, tuple(np.asarray(x) for x in losses)


def lay(placed: list, B: int, S: int, prefix: tuple[int, ...], eos: int, *, reversed: bool = False) -> Rows:
  """Returns the rows [B, T] of one direction. `placed`: (chunk, row, first slot) of each chunk."""
  ids_BS, segments_BS, positions_BS = np.zeros((3, B, S), np.int32)
  fixed_BS = np.ones((B, S), bool)
  for number, (chunk, row, start) in enumerate(placed, 1):
    content = slice(start + len(prefix), start + len(prefix) + len(chunk.content))
    whole = slice(start, start + len(prefix) + chunk.targets)
    ids_BS[row, start : content.start] = prefix
    ids_BS[row, content] = chunk.content
    ids_BS[row, content.stop : whole.stop] = eos
    fixed_BS[row, content] = False
    segments_BS[row, whole] = number
    positions_BS[row, whole] = np.arange(whole.stop - whole.start)
  if reversed:
    ids_BS = reverse(ids_BS, segments_BS, fixed_BS)
  # A chunk's last id is also an input. Its target is the next chunk's first id or padding, and `_sums` does not read it.
  inputs = {'tokens': ids_BS, 'segments': segments_BS, 'positions': positions_BS}
  return {'targets': ids_BS[:, 1:], **{name: x_BS[:, :-1] for name, x_BS in inputs.items()}}


def _sums(chunk: _Chunk, forward_T, reverse_T, start: int, ends: Ends) -> tuple[float, float, float, float]:
  n = len(chunk.content)
  taken = lambda nll_T, prefix: nll_T[start + len(prefix) - 1 :][: chunk.targets].astype(np.float64)
  forward, reverse = taken(forward_T, ends.forward), taken(reverse_T, ends.reverse)
  # Reverse losses are put into the order of the text, so that forward - reverse compares the same target.
  reverse = np.concatenate([reverse[:n][::-1], reverse[n:]])
  return chunk.targets, forward.sum(), reverse.sum(), np.square(forward - reverse).sum()
