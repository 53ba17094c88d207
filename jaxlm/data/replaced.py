"""Replaces tokens at chosen positions of every row by a fixed or a random token, as in the data study of the attention-sink paper."""

from collections.abc import Sequence
import zlib

import numpy as np

from jaxlm.data.packing import Batch


def replace_tokens(batch: Batch, positions: Sequence[int], *, token: int | None, vocab_size: int) -> Batch:
  """Returns the batch with the tokens at `positions` (from 1) of each row replaced, also in the targets.

  Args:
    batch: see `packing.Batch`; rows whose mask is all 0 do not change.
    positions: positions within 1 .. T.
    token: id that replaces the tokens of all rows; None: ids drawn uniformly from the vocabulary, equal for equal rows.
    vocab_size: vocabulary size of the tokenizer.

  Raises:
    ValueError: a position outside the row or a token outside the vocabulary.
  """
  tokens_BT, targets_BT = batch['tokens'].copy(), batch['targets'].copy()
  length = tokens_BT.shape[1]
  if bad := [p for p in positions if not 1 <= p <= length]:
    raise ValueError(f'position {bad[0]} is outside a row of {length} tokens (positions begin at 1).')
  if token is not None and not 0 <= token < vocab_size:
    raise ValueError(f'token {token} is outside the vocabulary of {vocab_size}.')
  for row in range(len(tokens_BT)):
    if not batch['mask'][row].any():
      continue
    # The seed is a hash of the row's tokens, so the ids are equal in every epoch and for any number of hosts.
    rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(batch['tokens'][row]).tobytes()))
    for position in positions:
      new = rng.integers(vocab_size) if token is None else token
      tokens_BT[row, position - 1] = new
      if position > 1:
        targets_BT[row, position - 2] = new
  return batch | {'tokens': tokens_BT, 'targets': targets_BT}
