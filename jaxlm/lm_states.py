"""Hidden states of many texts by a language model: for classifiers on a frozen model, and as embeddings of sentences.

  states = kept_states(folder, lm.params, lm.config, rows)     float array of all tokens, one row a token, in a file
  vectors = embed(lm, texts)                                   the mean over the tokens, of length 1

Texts of similar lengths are computed together. Letters: B texts, T tokens, D width of the model, N texts of a whole data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ModelConfig
from jaxlm.data.text_reader import LmTokens
from jaxlm.io import kept_arrays
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float

VERSION = 1
"""Raise it when states are computed in another way: then no file of before is used."""
STEP = 16
"""Texts are padded to a multiple of this number of tokens, so that few programs are compiled."""
TOKENS = 2048
"""Number of tokens that are computed together."""


def mean_pooled(states: Float[Array, 'B T D'], mask: Bool[Array, 'B T']) -> Float[Array, 'B D']:
  """Returns the float32 mean of the states of the real tokens, divided by its length; 0 for a text without tokens."""
  weight_BT1 = mask.astype(jnp.float32)[:, :, None]
  mean_BD = jnp.sum(states.astype(jnp.float32) * weight_BT1, axis=1) / jnp.maximum(jnp.sum(weight_BT1, axis=1), 1)
  return normalised(mean_BD)


def normalised(vectors: Float[Array, '... D']) -> Float[Array, '... D']:
  """Returns vectors divided by their lengths; those of length 0 stay so."""
  return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


_states = jax.jit(functions.text_states, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def _embeddings(params, config, tokens_BT, mask_BT):
  return mean_pooled(functions.text_states(params, config, tokens_BT, mask_BT), mask_BT)


def batches(rows: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields (numbers of the rows [n], int32 tokens [B, T], bool mask [B, T]) with n <= B, the shortest rows first.

  Rows that only fill a batch have one token, which is real for them.
  """
  lengths = np.array([len(row) for row in rows])
  padded = np.maximum(-(-lengths // STEP), 1) * STEP
  for T in np.unique(padded):
    at, B = np.flatnonzero(padded == T), max(1, TOKENS // int(T))
    for first in range(0, len(at), B):
      numbers = at[first : first + B]
      tokens, mask = np.zeros((B, T), np.int32), np.zeros((B, T), bool)
      mask[len(numbers) :, 0] = True
      for i, number in enumerate(numbers):
        tokens[i, : lengths[number]], mask[i, : lengths[number]] = rows[number], True
      yield numbers, tokens, mask


def kept_states(
  folder: Path, params: Any, config: ModelConfig, rows: Sequence[Sequence[int]], progress: Callable[[int], Any] | None = None
) -> Float[np.ndarray, 'tokens D']:  # fmt: skip
  """Returns the states of all tokens as a read-only map of a file; see `jaxlm.io.kept_arrays`.

  Args:
    folder: holds the states. Its name must say which model and texts they belong to.
    params, config: of the model; its dtype is that of the states.
    rows: ids of the texts, in the order of the file.
    progress: called with the number of texts of each batch when it is computed, or was there before.

  Raises:
    DataError: the folder cannot be used.
  """
  ends = np.cumsum([0, *map(len, rows)])

  def pieces(_, done):
    for i, (numbers, tokens, mask) in enumerate(batches(rows)):
      if i >= done:
        states = np.asarray(_states(params, config, tokens, mask))
        at = np.concatenate([np.arange(ends[n], ends[n + 1]) for n in numbers])
        yield at, {'states': np.concatenate([found[: len(rows[n])] for n, found in zip(numbers, states)])}
      if progress is not None:
        progress(len(numbers))

  shape = jax.ShapeDtypeStruct((int(ends[-1]), config.model_dim), config.dtype)
  return kept_arrays.kept(folder, {'states': shape}, pieces)['states']


def embed(lm: LanguageModel, texts: Sequence[str], *, max_tokens: int | None = None) -> Float[np.ndarray, 'N D']:
  """Returns the float32 embedding of each text: the mean of its tokens' states, of length 1.

  Two embeddings have their cosine as product. With `jaxlm.load('minilm')` it says how alike two sentences are.

  Args:
    lm: a model with a tokenizer.
    texts: strings.
    max_tokens: longest text; of longer ones the first tokens count, and the one that ends them. None: the model's length.

  Raises:
    ValueError: the model has no tokenizer, a text has no token, or `max_tokens` is beyond what the model reads.
  """
  if lm.tokenizer is None:
    raise ValueError('Texts need a tokenizer: load a model that has one.')
  most = lm.config.max_length if max_tokens is None else max_tokens
  if not 2 <= most <= lm.config.max_length:
    raise ValueError(f'{max_tokens=} must be within 2 .. {lm.config.max_length}, the length that the model reads.')
  words, rows = LmTokens(lm.tokenizer), []
  for i, text in enumerate(texts):
    ids = words.encode(text)
    if not ids:
      raise ValueError(f'Text {i} is empty: {text[:40]!r} has no token.')
    rows.append(ids if len(ids) <= most else [*ids[: most - 1], ids[most - 1] if words.last_id is None else ids[-1]])
  found = np.zeros((len(rows), lm.config.model_dim), np.float32)
  for numbers, tokens, mask in batches(rows):
    found[numbers] = np.asarray(_embeddings(lm.params, lm.config, tokens, mask))[: len(numbers)]
  return found
