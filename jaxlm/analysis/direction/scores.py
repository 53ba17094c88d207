"""Scores documents by the losses of a model that was trained on both directions.

  S = L_forward - L_reverse,   L = -(1/M) sum of log p over the M targets of a document: its content and EOS

If S > 0, the text is easier in reverse; the paper keeps texts with a high S for training (https://arxiv.org/abs/2410.09817).
For the true distribution, S is 0 for every text, by the chain rule. So S measures what the model finds easy: use it to rank
texts, and do not interpret S = 0. jaxlm.analysis.direction.rows defines BOS, EOS and chunks, which the paper does not.
"""

from collections.abc import Iterable, Iterator, Sequence
import functools
import hashlib
import itertools
from typing import Any

import jax
import numpy as np

from jaxlm.analysis.direction import model as direction_model
from jaxlm.analysis.direction.records import Score, text_digest
from jaxlm.analysis.direction.rows import Ends, Nll, chunk_sizes, place, pooled
from jaxlm.data import corpus
from jaxlm.language_model import LanguageModel

WINDOW = 4
"""Number of batches whose documents are packed together. More batches pack better; fewer lose less work when a run is killed."""


def score_documents(
  lm: LanguageModel,
  documents: Iterable[str | Sequence[int] | tuple[str, str]],
  *,
  reverse_lm: LanguageModel | None = None,
  batch_size: int = 16,
  max_length: int | None = None,
  min_tokens: int = 1,
  bos_id: int | None = None,
  eos_id: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Iterator[Score]:
  """Yields each document's losses in both directions, in order. Only a few batches of documents are in memory at a time.

  Args:
    lm: model that scores both directions, or only forward if `reverse_lm` is given.
    documents: texts, pairs (text, domain), or lists of ids without BOS and EOS.
    reverse_lm: model that scores the reverse direction; it must have the same tokenizer as `lm`.
    batch_size: rows computed at the same time, rounded up to a multiple of the number of devices.
    max_length: tokens of a row; longer documents are split into chunks (None: the model's context).
    min_tokens: documents with fewer tokens are not scored.
    bos_id, eos_id: ids used instead of the tokenizer's BOS and EOS.
    devices: devices that share the rows (None: all local ones).

  Raises:
    ValueError: texts without a tokenizer, a model with neither BOS nor EOS, ids beyond the vocabulary, tokenizers that
      differ, a `max_length` beyond the model's context, or losses that are not finite.
  """
  devices = jax.local_devices() if devices is None else devices
  length = row_length(lm, reverse_lm, max_length)
  nll = direction_model.token_losses(lm, reverse_lm, devices)
  around = direction_model.ends(lm, reverse_lm, bos_id, eos_id)
  vocabulary = min(m.config.vocab_size for m in (lm, reverse_lm or lm))
  shape = dict(batch_size=rounded(batch_size, len(devices)), length=length, min_tokens=min_tokens)
  return itertools.chain.from_iterable(scored_windows(documents, lm.tokenizer, nll, around, vocabulary, **shape))


def rounded(batch_size: int, devices: int) -> int:
  if batch_size < 1:
    raise ValueError(f'{batch_size=} must be at least 1.')
  return -(-batch_size // devices) * devices


def row_length(lm: LanguageModel, reverse_lm: LanguageModel | None = None, max_length: int | None = None) -> int:
  """Returns the tokens of a row. Raises ValueError if `max_length` exceeds the models' context or their tokenizers differ."""
  if reverse_lm is not None and (lm.tokenizer is not None or reverse_lm.tokenizer is not None):
    fingerprints = [corpus.tokenizer_fingerprint(m.tokenizer) if m.tokenizer else None for m in (lm, reverse_lm)]
    if fingerprints[0] != fingerprints[1]:
      raise ValueError('The two models have different tokenizers: their losses are not of the same tokens.')
  context = min(m.config.max_length for m in (lm, reverse_lm or lm))
  length = context if max_length is None else max_length
  if not 2 <= length <= context:
    raise ValueError(f'{max_length=} must be within 2 .. {context}, the context of the model.')
  return length


def scored_windows(
  documents: Iterable[Any],
  tokenizer: Any,
  nll: Nll,
  ends: Ends,
  vocab_size: int,
  *,
  batch_size: int,
  length: int,
  min_tokens: int = 1,
  first: int = 0,
  progress=lambda targets: None,
) -> Iterator[list[Score]]:
  """Yields lists of scores, each for the documents that fill `WINDOW` batches; the first document has the id `first`.

  A window does not depend on earlier windows, so a run that is resumed after any window yields the same numbers.
  """
  rows = WINDOW * batch_size
  capacity = rows * (length + 1)
  score = functools.partial(
    _scored, nll=nll, ends=ends, batch_size=batch_size, length=length, min_tokens=min_tokens, progress=progress
  )
  window, used = [], 0
  for number, (item, ids) in enumerate(_encoded(documents, tokenizer), first):
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
      raise ValueError(f'Document {number} has ids {ids.min()} .. {ids.max()}; the vocabulary has {vocab_size}.')
    window.append((number, item, ids))
    used += sum(chunk_sizes(len(ids), ends, length))
    while used > capacity:
      n = _fitting(window, ends, length, rows)
      yield score(window[:n])
      window = window[n:]
      used = sum(sum(chunk_sizes(len(ids), ends, length)) for _, _, ids in window)
  while window:
    n = _fitting(window, ends, length, rows)
    yield score(window[:n])
    window = window[n:]


def _fitting(window, ends: Ends, length: int, rows: int) -> int:
  """Returns how many documents of a window, from the first, fit into `rows` rows; at least one.

  One row more would need another batch that is nearly empty.
  """
  sizes = [chunk_sizes(len(ids), ends, length) for _, _, ids in window]
  n = len(window)
  while n > 1:
    placed = place([*itertools.chain.from_iterable(sizes[:n])], length + 1)
    excess = 1 + max(row for row, _ in placed) - rows
    if excess <= 0:
      break
    left_out = 0
    while n > 1 and left_out <= (excess - 1) * (length + 1):
      n -= 1
      left_out += sum(sizes[n])
  return n


def _scored(window, *, nll, ends, batch_size, length, min_tokens, progress) -> list[Score]:
  long_enough = [ids for _, _, ids in window if len(ids) + 1 >= min_tokens]
  sums = iter(pooled(long_enough, nll, ends, batch_size=batch_size, length=length, progress=progress))
  scores = []
  for number, item, ids in window:
    text, domain = item if isinstance(item, tuple) else (item, '')
    is_text = isinstance(text, str)
    digest = text_digest(text) if is_text else hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()
    tokens = len(ids) + 1
    found = next(sums) if tokens >= min_tokens else None
    scores.append(Score(number, digest, domain, len(text) if is_text else 0, tokens, found))
  return scores


def _encoded(documents: Iterable[Any], tokenizer: Any, characters: int = 1 << 18) -> Iterator[tuple[Any, np.ndarray]]:
  """Yields (document, its ids). Texts are encoded in groups of about `characters` characters, which is faster."""
  for some in _groups(documents, characters):
    texts = [item[0] if isinstance(item, tuple) else item for item in some if _is_text(item)]
    if texts and tokenizer is None:
      raise ValueError('The model has no tokenizer, so it cannot read text: give lists of ids.')
    many = getattr(tokenizer, 'encode_batch', lambda texts: map(tokenizer.encode, texts))
    encoded = iter(many(texts) if texts else ())
    for item in some:
      ids = next(encoded) if _is_text(item) else item
      yield item, np.asarray(ids, np.int32).reshape(-1)


def _is_text(item: Any) -> bool:
  return isinstance(item, str) or (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str))


def _groups(documents: Iterable[Any], characters: int) -> Iterator[list[Any]]:
  some, size = [], 0
  for item in documents:
    some.append(item)
    size += len(item[0]) if isinstance(item, tuple) and _is_text(item) else len(item)
    if size >= characters:
      yield some
      some, size = [], 0
  if some:
    yield some
