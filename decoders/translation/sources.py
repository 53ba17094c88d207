"""Sources as a user gives them, made into batches of few shapes; everything wrong with them is found here."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from jaxlm.lengths import bucket
from jaxlm.translation_model import Seq2SeqModel

BATCH_SIZE = 64
"""Sources that are translated together, unless the user says otherwise."""


def encode(
  model: Seq2SeqModel,
  sources: Sequence[str] | Sequence[Sequence[int]],
  names: Sequence[str] | None = None,
) -> list[list[int]]:
  """Returns the ids of each source with its EOS.

  Args:
    model: whose tokenizer reads strings.
    sources: strings when the model has a tokenizer, or lists of ids without EOS.
    names: what messages call each source; None: 'Source 0' and so on.

  Raises:
    ValueError: what is no source: empty, text without a tokenizer, ids outside the vocabulary, longer than the model reads.
  """
  c = model.config
  if isinstance(sources, str) or (len(sources) and isinstance(sources[0], (int, np.integer))):
    raise ValueError('`sources` is a list of sources: wrap a single one in a list.')
  if not len(sources):
    raise ValueError('`sources` is empty: pass at least one source.')
  vocab_size = c.source_vocab_size or c.vocab_size
  found = []
  for i, source in enumerate(sources):
    name = f'Source {i}' if names is None else names[i]
    if isinstance(source, str):
      if model.tokenizer is None:
        raise ValueError('This model has no tokenizer: pass sources as lists of token ids.')
      ids = [int(t) for t in model.tokenizer.encode_source(source)]
    else:
      ids = [int(t) for t in source]
    if not ids:
      raise ValueError(f'{name} is empty: expected at least one token before the EOS.')
    if bad := [t for t in ids if not 0 <= t < vocab_size]:
      raise ValueError(f'{name} has token id {bad[0]}; the source vocabulary has ids 0 to {vocab_size - 1}.')
    if len(ids) + 1 > c.max_length:
      raise ValueError(
        f'{name} has {len(ids) + 1} tokens with its EOS, and the model reads at most {c.max_length}: split it into sentences.'
      )
    found.append([*ids, c.source_end_id])
  return found


def limits(config, ids: Sequence[Sequence[int]], max_new_tokens: int | None) -> np.ndarray:
  """Returns the most tokens to generate for each source, int32 [B].

  With None they are twice its length and 20, at most the model's length: a source's own, so that its translation does not
  depend on the others.

  Raises:
    ValueError: max_new_tokens is less than 1, or more than the model's length.
  """
  if max_new_tokens is None:
    return np.array([min(2 * len(row) + 20, config.max_length) for row in ids], np.int32)
  if not 1 <= max_new_tokens <= config.max_length:
    raise ValueError(
      f'{max_new_tokens=} must be within 1 .. {config.max_length}, the longest target that the model writes.'
    )
  return np.full(len(ids), max_new_tokens, np.int32)


@dataclasses.dataclass(frozen=True)
class Batch:
  """Sources of similar lengths. Rows that only fill the batch are a source of one padding token, with limit 0."""

  rows: np.ndarray  # [B'] which source each of the first B' rows is
  tokens: np.ndarray  # [B, S] int32, padded on the right with 0, which every source vocabulary has
  lengths: np.ndarray  # [B] int32
  limits: np.ndarray  # [B] int32
  room: int  # Tokens that the longest translation may have, rounded up.

  def filled(self, x: np.ndarray) -> np.ndarray:
    """Returns what each row has of an array over all sources; rows that only fill the batch repeat the last one."""
    return x[np.pad(self.rows, (0, len(self.lengths) - len(self.rows)), mode='edge')]


def batches(config, ids: Sequence[Sequence[int]], limits_B: np.ndarray, batch_size: int) -> list[Batch]:
  """Returns batches of sources sorted by length, the longest first, so that what does not fit in memory fails at once.

  Lengths are rounded up, and all batches have as many rows, so that few programs are compiled.
  """
  order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
  size = min(batch_size, 1 << (len(ids) - 1).bit_length())
  found = []
  for first in range(0, len(order), size):
    rows = order[first : first + size]
    longest = max(len(ids[i]) for i in rows)
    tokens = np.zeros((size, min(bucket(longest), config.max_length)), np.int32)
    lengths, limits = np.ones(size, np.int32), np.zeros(size, np.int32)
    for b, i in enumerate(rows):
      tokens[b, : len(ids[i])] = ids[i]
      lengths[b], limits[b] = len(ids[i]), limits_B[i]
    room = min(bucket(int(limits.max())), config.max_length)
    found.append(Batch(np.array(rows), tokens, lengths, limits, room))
  return found
