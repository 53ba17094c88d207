"""Batches of sentence pairs as a pure function of (pairs, seed, step), in a few shapes of about equally many tokens.

S source tokens, T target tokens, B rows. Pairs of similar length share a bucket, and a bucket has one shape [B, S, T] with
B x max(S, T) just within the budget: a program is compiled once for each bucket, and little is padding. An epoch has all batches of
all buckets in an order of the seed, and each pair once:

  batch b of bucket i = pairs shuffle_i(epoch)[b n_i / k_i : (b + 1) n_i / k_i],   k_i = ceil(n_i / B_i)

So the n_i pairs of a bucket are spread evenly over its batches, and no batch has just the few that are left over. The rows that a
batch then lacks have weight 0: mask is 0 throughout, and source and tokens hold one token, so that attention has something to see.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import hashlib
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxlm import errors
from jaxlm.data.pair_buckets import Shape, assign, choose_shapes
from jaxlm.data.pair_corpus import PairCorpus, tokenize_pairs
from jaxlm.data.pair_tokenizers import PairTokenizers

Batch = dict[str, np.ndarray]
"""source int32 and source_mask bool [B, S]; tokens and targets int32 [B, T]; mask float32 [B, T]."""


class Padding(NamedTuple):
  """What the batches of an epoch hold, in tokens of both sides."""

  tokens: int
  """Tokens of pairs."""
  places: int
  """Rows x (S + T), summed over batches."""

  @property
  def share(self) -> float:
    """Part of what is computed that is padding."""
    return 1 - self.tokens / self.places


@dataclasses.dataclass(frozen=True)
class _Bucketed:
  """Pairs in buckets, and what batches for training and for evaluation have in common."""

  corpus: PairCorpus
  shapes: tuple[Shape, ...]
  what: ClassVar[str] = 'pairs'
  """Name of the pairs in messages."""

  def __post_init__(self):
    if not sum(map(len, self.members)):
      longest = self.shapes[-1]
      raise errors.DataError(
        f'None of the {len(self.corpus)} {self.what} fits into {longest.S} source and {longest.T} target tokens: raise max_length.'
      )

  @property
  def _first_members(self) -> list[np.ndarray]:
    """Indices of the pairs in the first bucket that they fit into."""
    bucket = assign(self.corpus.lengths, self.shapes)
    order = np.argsort(bucket, kind='stable')
    return np.split(order, np.searchsorted(bucket[order], np.arange(1, len(self.shapes) + 1)))[:-1]

  @functools.cached_property
  def members(self) -> list[np.ndarray]:
    """Indices of the pairs in each bucket."""
    return self._first_members

  @property
  def pairs(self) -> int:
    """Number of pairs that are used."""
    return sum(map(len, self.members))

  @property
  def dropped(self) -> int:
    """Number of pairs that are left out because they are longer than the largest shape."""
    return len(self.corpus) - self.pairs

  @property
  def batch_size(self) -> int:
    """Rows of the largest batch. `rows` slices this many, and smaller batches in proportion."""
    return max(shape.rows for shape in self.shapes)

  @functools.cached_property
  def _batches(self) -> np.ndarray:
    """Number of batches in each bucket."""
    return np.array([-(-len(m) // shape.rows) for m, shape in zip(self.members, self.shapes)])

  @property
  def padding(self) -> Padding:
    lengths = self.corpus.lengths
    tokens = sum(int(lengths[m].sum(dtype=np.int64)) for m in self.members)
    return Padding(tokens, sum(int(k) * s.rows * (s.S + s.T) for k, s in zip(self._batches, self.shapes)))

  def describe(self) -> str:
    """Returns a line about the pairs and the shapes of their batches."""
    shapes = ', '.join(f'{s.rows} x ({s.S}, {s.T})' for s in self.shapes)
    long = f' {self.dropped} pairs are longer than these and left out.' if self.dropped else ''
    return (
      f'{self.pairs} sentence pairs, {self.padding.tokens} tokens, in {int(self._batches.sum())} batches of rows x '
      f'(source, target) tokens: {shapes}; {self.padding.share:.1%} is padding.{long}'
    )

  def _locate(self, place: int) -> tuple[int, int]:
    """Returns (bucket, batch within it) of a batch, with those of the first bucket first."""
    ends = np.cumsum(self._batches)
    bucket = int(np.searchsorted(ends, place, side='right'))
    return bucket, place - int(ends[bucket] - self._batches[bucket])

  def _part(self, rows: slice | None, size: int) -> range:
    """Returns the rows of a batch of `size` that correspond to `rows` of `batch_size`."""
    chosen = range(self.batch_size)[rows or slice(None)]
    if not chosen:
      raise ValueError(f'{rows=} selects none of {self.batch_size} rows.')
    ends = [end * size / self.batch_size for end in (chosen[0], chosen[-1] + 1)]
    if chosen.step != 1 or any(end % 1 for end in ends):
      raise ValueError(
        f'{rows=} of {self.batch_size} has no counterpart in a batch of {size} rows: make the batches with `devices` set to the '
        'number of equal parts that are read apart.'
      )
    return range(int(ends[0]), int(ends[1]))

  def _make(self, shape: Shape, indices: np.ndarray) -> Batch:
    """Returns the arrays of some pairs; index -1 is a row of weight 0."""
    source_tokenizer, target_tokenizer = self.corpus.tokenizers.source, self.corpus.tokenizers.target
    B = len(indices)
    source_BS = np.full((B, shape.S), source_tokenizer.pad_id, np.int32)
    tokens_BT, targets_BT = (np.full((B, shape.T), target_tokenizer.pad_id, np.int32) for _ in range(2))
    source_lengths_B, lengths_B = np.ones(B, np.int32), np.zeros(B, np.int32)
    source_BS[:, 0], tokens_BT[:, 0] = source_tokenizer.eos_id, target_tokenizer.bos_id
    for row, index in enumerate(indices):
      if index < 0:
        continue
      source, target = self.corpus.source.document(index), self.corpus.target.document(index)
      source_lengths_B[row], lengths_B[row] = len(source), len(target)
      source_BS[row, : len(source)] = source
      tokens_BT[row, 1 : len(target)] = target[:-1]
      targets_BT[row, : len(target)] = target
    return {
      'source': source_BS,
      'source_mask': np.arange(shape.S)[None] < source_lengths_B[:, None],
      'tokens': tokens_BT,
      'targets': targets_BT,
      'mask': (np.arange(shape.T)[None] < lengths_B[:, None]).astype(np.float32),
    }


@dataclasses.dataclass(frozen=True)
class PairBatches(_Bucketed):
  """Shuffled training batches, without end."""

  seed: int = 0

  @property
  def steps_per_epoch(self) -> int:
    return int(self._batches.sum())

  @functools.cached_property
  def _orders(self) -> list[Any]:
    """The order of the pairs in each bucket, and last that of the batches: each a permutation anew in each epoch."""
    import grain  # takes a second to import

    def order(n, salt):
      # Hashed, because grain shuffles epoch e with seed + e: neighbouring seeds and buckets would share orders.
      seed = int.from_bytes(hashlib.blake2b(f'{int(self.seed)} {salt}'.encode(), digest_size=4).digest(), 'big')
      return grain.MapDataset.range(n).shuffle(seed=seed).repeat()

    sizes = [*map(len, self.members), self.steps_per_epoch]
    return [order(n, salt) if n else None for salt, n in enumerate(sizes)]

  def _place(self, step: int) -> tuple[int, int, int]:
    """Returns (epoch, bucket, batch within the bucket) of a step."""
    if step < 0:
      raise ValueError(f'{step=} must not be less than 0.')
    return step // self.steps_per_epoch, *self._locate(int(self._orders[-1][step]))

  def shape(self, step: int) -> Shape:
    return self.shapes[self._place(step)[1]]

  def indices(self, step: int, rows: slice | None = None) -> np.ndarray:
    """Returns which pairs the rows of a batch are, int64 [B]; -1 for rows of weight 0."""
    epoch, bucket, batch = self._place(step)
    members, number, size = self.members[bucket], int(self._batches[bucket]), self.shapes[bucket].rows
    first, last = (len(members) * b // number for b in (batch, batch + 1))
    places = [first + row if first + row < last else -1 for row in self._part(rows, size)]
    order = self._orders[bucket]
    return np.array([-1 if p < 0 else members[order[epoch * len(members) + p]] for p in places], np.int64)

  def batch(self, step: int, rows: slice | None = None) -> Batch:
    """Returns batch `step`, or only some of its rows: what one process of several needs to read.

    Args:
      rows: a slice of `batch_size` rows. Of a batch with fewer rows, the part that corresponds: the second half, for instance.

    Raises:
      ValueError: `rows` selects none, or no whole rows of a smaller batch.
    """
    return self._make(self.shape(step), self.indices(step, rows))


@dataclasses.dataclass(frozen=True)
class PairEvalBatches(_Bucketed):
  """Each pair once, the short ones first, in the same order every time; only the last batch may have rows of weight 0."""

  max_batches: int | None = None
  what: ClassVar[str] = 'held-out pairs'

  @functools.cached_property
  def members(self) -> list[np.ndarray]:
    """Indices of the pairs in each bucket. What does not fill a batch joins the next bucket, as far as the longest pairs' one."""
    found, rest = [], np.zeros(0, np.int64)
    first = self._first_members
    last = max((i for i, pairs in enumerate(first) if len(pairs)), default=0)
    for i, (shape, pairs) in enumerate(zip(self.shapes, first)):
      pairs = np.concatenate([rest, pairs])
      full = len(pairs) if i == last else len(pairs) // shape.rows * shape.rows
      found.append(pairs[:full])
      rest = pairs[full:]
    return found

  def __len__(self) -> int:
    n = int(self._batches.sum())
    return n if self.max_batches is None else min(n, self.max_batches)

  def indices(self, step: int, rows: slice | None = None) -> np.ndarray:
    """Returns which pairs the rows of a batch are, int64 [B]; -1 for rows of weight 0."""
    if not 0 <= step < len(self):
      raise IndexError(f'{step=} of {len(self)} evaluation batches.')
    bucket, batch = self._locate(step)
    members, size = self.members[bucket], self.shapes[bucket].rows
    places = [batch * size + row for row in self._part(rows, size)]
    return np.array([members[p] if p < len(members) else -1 for p in places], np.int64)

  def batch(self, step: int, rows: slice | None = None) -> Batch:
    """Returns batch `step`; `rows` as for `PairBatches.batch`."""
    return self._make(self.shapes[self._locate(step)[0]], self.indices(step, rows))

  def __iter__(self) -> Iterator[Batch]:
    return (self.batch(step) for step in range(len(self)))


def make_pair_batches(
  pairs: PairCorpus | Iterable[tuple[str, str]],
  tokenizers: PairTokenizers,
  *,
  tokens: int,
  buckets: int = 8,
  seed: int = 0,
  max_length: int = 256,
  devices: int = 1,
) -> PairBatches:
  """Returns training batches: `make_pair_batches(...).batch(step)`.

  Args:
    pairs: (source, target) texts, or what `tokenize_pairs` made of them.
    tokens: budget of a batch: its rows x max(S, T) is at most this.
    buckets: number of shapes at most. More shapes have less padding and compile more programs.
    max_length: tokens that a source or a target has at most, with EOS; longer pairs are counted in `dropped` and left out.
    devices: rows of each batch are a multiple of this.

  Raises:
    DataError: there are no pairs, or all are too long.
    ValueError: the budget has no room for a row of the longest pair on each device; the message has both numbers.
  """
  corpus = pairs if isinstance(pairs, PairCorpus) else tokenize_pairs(pairs, tokenizers)
  shapes = choose_shapes(corpus.lengths, tokens=tokens, buckets=buckets, max_length=max_length, devices=devices)
  return PairBatches(corpus, shapes, seed)


def eval_pair_batches(
  pairs: PairCorpus | Iterable[tuple[str, str]],
  tokenizers: PairTokenizers,
  shapes: tuple[Shape, ...],
  *,
  max_batches: int | None = None,
) -> PairEvalBatches:
  """Returns a re-iterable over all pairs in a fixed order, or over its first `max_batches` batches.

  Args:
    shapes: those of the training batches, so that no further program is compiled; pairs that do not fit are counted in `dropped`.

  Raises:
    DataError: there are no pairs, or none fits.
  """
  corpus = pairs if isinstance(pairs, PairCorpus) else tokenize_pairs(pairs, tokenizers)
  return PairEvalBatches(corpus, shapes, max_batches)
