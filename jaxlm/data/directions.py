"""Batches whose documents are read forward or in reverse (https://arxiv.org/abs/2410.09817), and the ids that signal which.

  signal   forward                reverse
  none     BOS x1 .. xN EOS       BOS xN .. x1 EOS
  token    BOS F x1 .. xN EOS     BOS R xN .. x1 EOS       F, R: two ids after the tokenizer's
  bos      BOS x1 .. xN EOS       BOS' xN .. x1 EOS        BOS': one id after the tokenizer's

A corpus holds documents in forward form. Each document of a window is reversed before the window is split into tokens and
targets. The id that signals the direction is not predicted: it has mask 0 as a target.

If a document began before the window, the window's first token was already a target of the previous window and serves only as
context. In reverse, this token would be a target twice and the last token never. So it is replaced by a BOS (with a signal:
by the id that tells the direction), and each token is a target once per epoch in both directions. Forward parts get the same
BOS; if only reverse parts had it, a model would learn that BOS means reverse text.

Directions are drawn by a hash of (document, epoch, seed), because a batch is a function of (corpus, seed, step).
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
from typing import Any, Literal

import numpy as np

from jaxlm import errors
from jaxlm.config import SIGNAL_IDS, Direction, DirectionSignal
from jaxlm.data import packing
from jaxlm.data.corpus import TokenCorpus
from jaxlm.data.packing import Batch, Packing
from jaxlm.data.reverse import reverse

Pairing = Literal['independent', 'duplicate']
"""'independent': a document's direction is drawn again in each epoch. 'duplicate': an epoch has each row in both directions."""


def bos_of(tokenizer: Any) -> int | None:
  """Returns the id that texts begin with: BOS, or EOS if the tokenizer has no BOS."""
  return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def signal_ids(signal: DirectionSignal, vocab_size: int) -> list[int]:
  """Returns the ids that signal a direction, the last ones of the model's vocabulary: [F, R], [BOS'] or []."""
  return list(range(vocab_size - SIGNAL_IDS[signal], vocab_size))


def head(
  direction: Literal['forward', 'reverse'], signal: DirectionSignal, bos_id: int | None, vocab_size: int
) -> list[int]:
  """Returns the first ids of a text: BOS (left out if `bos_id` is None) and the signal. `vocab_size` is the model's."""
  bos, extra = [] if bos_id is None else [bos_id], signal_ids(signal, vocab_size)
  if signal == 'token':
    return [*bos, extra[direction == 'reverse']]
  return extra if signal == 'bos' and direction == 'reverse' else bos


class Headed:
  """Wraps a tokenizer for `corpus.tokenize(..., bos=True, eos=True)`: texts begin with BOS and the forward signal.

  `vocab_size` is the model's; None: the tokenizer's size plus the ids of the signal.

  Raises:
    ValueError: the tokenizer has no EOS.
  """

  def __init__(self, tokenizer: Any, signal: DirectionSignal = 'none', vocab_size: int | None = None):
    if tokenizer.eos_id is None:
      raise ValueError('This tokenizer has no EOS, which documents that are read in reverse must end with.')
    self._tokenizer = tokenizer
    self.bos_id, self.eos_id = bos_of(tokenizer), tokenizer.eos_id
    tight = tokenizer.vocab_size + SIGNAL_IDS[signal]
    self.vocab_size = tight if vocab_size is None else vocab_size
    # The corpus does not contain the BOS of reverse texts.
    self._first = head('forward', signal, None, self.vocab_size)
    if key := getattr(tokenizer, 'fingerprint', None):
      # In a vocabulary that is padded beyond the tokenizer's, the signal has other ids.
      at = '' if self.vocab_size == tight else f'{self._first}'
      self.fingerprint = f'{key}+direction{at}' if self._first else key

  def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
    ids = [*self._first, *self._tokenizer.encode(text)]
    return [*([self.bos_id] if bos else []), *ids, *([self.eos_id] if eos else [])]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    if hasattr(self._tokenizer, 'encode_batch'):
      return [[*self._first, *ids] for ids in self._tokenizer.encode_batch(texts)]
    return [self.encode(text) for text in texts]


def uniform(numbers: np.ndarray, *key: Any) -> np.ndarray:
  """Returns a pseudo-random float64 in [0, 1) for each of `numbers`, as a hash of it and `key`, equal on all machines."""
  start = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'big')
  with np.errstate(over='ignore'):  # splitmix64, whose sums and products wrap around
    x = np.asarray(numbers).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclasses.dataclass(frozen=True)
class Reading:
  """How the documents of a corpus are read. Each is stored as BOS, the forward signal if there is one, text, EOS."""

  direction: Direction
  bos_id: int
  vocab_size: int
  """Vocabulary size of the model; its last ids signal the direction."""
  signal: DirectionSignal = 'none'
  share: float = 0.5
  """both: probability that a document is read in reverse."""
  pairing: Pairing = 'independent'
  """both, duplicate: each row occurs in both directions within an epoch, as two rows."""

  def __post_init__(self):
    for name, kind in (('direction', Direction), ('signal', DirectionSignal), ('pairing', Pairing)):
      if (value := getattr(self, name)) not in kind.__args__:
        raise errors.unknown(name, value, kind.__args__)
    if not 0 <= self.share <= 1:
      raise ValueError(f'{self.share=} must be within [0, 1].')

  def window(
    self,
    corpus: TokenCorpus,
    index: int,
    length: int,
    mode: Packing,
    which: Callable[[np.ndarray], np.ndarray],
  ) -> Batch:
    """Returns row `index` in the format of `packing.window`. `which` maps document numbers to whether they are reversed."""
    ids_S = packing.window_ids(corpus, index, length)
    if len(ids_S) < 2:
      return packing.window(corpus, index, length, mode)
    heads = [head(way, self.signal, self.bos_id, self.vocab_size) for way in ('forward', 'reverse')]
    document_S, at_S, left_S = _places(corpus, index * length, len(ids_S))
    first = document_S[0]
    reverse_S = np.asarray(which(np.arange(first, document_S[-1] + 1)), bool)[document_S - first]
    for i, pair in enumerate(zip(*heads)):
      ids_S = np.where(at_S == i, np.where(reverse_S, pair[1], pair[0]), ids_S)
    fixed_S = (at_S < len(heads[0])) | (left_S == 0)
    if not fixed_S[0] and not fixed_S[1]:
      ids_S[0], fixed_S[0] = heads[int(reverse_S[0])][-1], True
    ids_S = reverse(ids_S, 1 + document_S - first, fixed_S, reverse_S).astype(np.int32)
    row = packing.window(corpus, index, length, mode, ids_S)
    if self.signal != 'none':
      row['mask'][: len(ids_S) - 1] *= at_S[1:] != len(heads[0]) - 1
    return row


def _places(corpus: TokenCorpus, start: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns, for each of `size` tokens from `start` on, its document and the numbers of the document's tokens before and after it."""
  first, last = np.searchsorted(corpus.offsets, (start, start + size - 1), side='right') - 1
  offsets, token_S = np.asarray(corpus.offsets[first : last + 2]), start + np.arange(size)
  document_S = np.searchsorted(offsets, token_S, side='right') - 1
  return first + document_S, token_S - offsets[document_S], offsets[document_S + 1] - 1 - token_S


@dataclasses.dataclass(frozen=True)
class DirectedBatches(packing.Batches):
  """Infinite shuffled training batches. With pairing 'duplicate', an epoch reads every window in one direction, and then all
  windows again, in the same order, in the other direction; the first direction is drawn for each window."""

  reading: Reading = dataclasses.field(kw_only=True)

  @property
  def _passes(self) -> int:
    """How often each window occurs in an epoch."""
    return 2 if self.reading.direction == 'both' and self.reading.pairing == 'duplicate' else 1

  @property
  def steps_per_epoch(self) -> float:
    return self._passes * super().steps_per_epoch

  def window_index(self, number: int) -> int:
    epoch, at = divmod(number, self.windows * self._passes)
    return super().window_index(epoch * self.windows + at % self.windows)

  def row(self, number: int) -> Batch:
    r, index = self.reading, self.window_index(number)
    epoch, at = divmod(number, self.windows * self._passes)

    def which(documents):
      if r.direction != 'both':
        return np.full(len(documents), r.direction == 'reverse')
      if r.pairing == 'duplicate':
        drawn = uniform(np.array([index]), 'window', epoch, int(self.seed)) < 0.5
        return np.repeat(drawn ^ (at >= self.windows), len(documents))
      return uniform(documents, 'document', epoch, int(self.seed)) < r.share

    return r.window(self.corpus, index, self.length, self.mode, which)


@dataclasses.dataclass(frozen=True)
class DirectedEvalBatches(packing.EvalBatches):
  """Batches of a whole corpus, in order, read in one direction."""

  reading: Reading = dataclasses.field(kw_only=True)
  reverse: bool = dataclasses.field(kw_only=True)

  def row(self, index: int) -> Batch:
    which = lambda documents: np.full(len(documents), self.reverse)
    return self.reading.window(self.corpus, index, self.length, self.mode, which)


def make_batches(
  corpus: TokenCorpus,
  reading: Reading,
  *,
  batch_size: int,
  length: int,
  seed: int = 0,
  mode: Packing = 'documents',
  fraction: float = 1.0,
) -> DirectedBatches:
  """Returns the batches of a corpus in the directions that `reading` gives; other arguments as for `packing.make_batches`.

  Raises:
    DataError: the corpus is shorter than one window of length + 1 tokens.
  """
  return DirectedBatches(corpus, batch_size, length, seed, mode, fraction, reading=reading)


def eval_batches(
  corpus: TokenCorpus,
  reading: Reading,
  *,
  reverse: bool,
  batch_size: int,
  length: int,
  mode: Packing = 'documents',
  max_batches: int | None = None,
) -> DirectedEvalBatches:
  """Returns a re-iterable over the whole corpus in one direction; other arguments as for `packing.eval_batches`."""
  return DirectedEvalBatches(corpus, batch_size, length, mode, max_batches, reading=reading, reverse=reverse)
