"""The three kinds of input on which the attention-sink paper (https://arxiv.org/abs/2410.10781) measures sinks."""

from __future__ import annotations

from collections.abc import Iterable
import itertools
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from jaxlm import errors
from jaxlm.data import sources
from jaxlm.language_model import LanguageModel

if TYPE_CHECKING:
  from jaxtyping import Int

Kind = Literal['natural', 'random', 'repeated']
READ = 50  # Documents read per sequence: enough for a random choice, without reading a huge source to its end.


def inputs(
  kind: Kind,
  *,
  lm: LanguageModel,
  batch: int,
  length: int,
  seed: int = 0,
  text: str | Iterable[str] | None = None,
  bos: bool = False,
) -> Int[np.ndarray, 'B T']:
  """Returns token ids, int32 [batch, length], without BOS as in the paper, or with it.

  Args:
    kind: natural: beginnings of documents, one sequence each. random: ids drawn uniformly. repeated: one id for all
      positions of a sequence, drawn uniformly.
    seed: seed of the random ids and of the choice of documents.
    text: natural: a spec of jaxlm.data.sources, or documents; None: text that comes with Python ('embedded').
    bos: whether the first of the `length` tokens is the tokenizer's BOS; the others are those of a sequence one token shorter.

  Raises:
    ValueError: an unknown kind, a size below 1, natural text for a model without tokenizer, or `bos` without a BOS.
    DataError: too few documents of this length.
  """
  if kind not in get_args(Kind):
    raise errors.unknown('kind of input', kind, get_args(Kind))
  if batch < 1 or length < 1:
    raise ValueError(f'{batch=} and {length=} must be at least 1.')
  if bos:
    if (id := getattr(lm.tokenizer, 'bos_id', None)) is None or length < 2:
      raise ValueError(f'bos=True needs a tokenizer with a BOS and at least 2 tokens; BOS is {id}, {length=}.')
    rest = inputs(kind, lm=lm, batch=batch, length=length - 1, seed=seed, text=text)
    return np.concatenate([np.full((batch, 1), id, np.int32), rest], axis=1)
  rng = np.random.default_rng(seed)
  if kind == 'natural':
    return _natural(lm, batch, length, rng, 'embedded' if text is None else text)
  # A vocabulary may be padded beyond the tokenizer; such ids were never trained on.
  ids = min(lm.config.vocab_size, getattr(lm.tokenizer, 'vocab_size', lm.config.vocab_size))
  tokens = rng.integers(0, ids, (batch, length if kind == 'random' else 1), dtype=np.int32)
  return np.ascontiguousarray(np.broadcast_to(tokens, (batch, length)))


def _natural(lm, batch: int, length: int, rng, text) -> np.ndarray:
  if lm.tokenizer is None:
    raise ValueError("The model has no tokenizer, so it cannot read text: take the kind 'random' or 'repeated'.")
  source = sources.documents(text) if isinstance(text, str) else text
  documents = list(itertools.islice(source, READ * batch))
  rows = []
  for i in rng.permutation(len(documents)):
    ids = lm.tokenizer.encode(documents[i][: 32 * length])  # Almost no token is longer than 32 characters.
    if len(ids) >= length:
      rows.append(ids[:length])
    if len(rows) == batch:
      return np.array(rows, np.int32)
  name = getattr(source, 'name', 'the source')
  raise errors.DataError(
    f'Only {len(rows)} of the {len(documents)} documents read of {name!r} have {length} tokens, {batch} are wanted: '
    f'ask for fewer or shorter sequences, or name more text.'
  )
