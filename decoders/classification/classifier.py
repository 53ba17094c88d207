"""The function that classifies texts: it reads them, runs the model batch by batch, and names labels and words."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders.classification.output import Classifications, ColumnResult, Contributions
from decoders.programs import Clock
from jaxlm.data.text_reader import padded
from jaxlm.errors import NotFiniteError
from jaxlm.exam_config import ExamConfig
from jaxlm.models import exam
from jaxlm.text_classifier import TextClassifier

BATCH_SIZE = 64
EXPLAINED_AT_ONCE = 16
"""Largest number of texts whose scores of all classes and positions are in memory together."""


@functools.partial(jax.jit, static_argnames=('config', 'top', 'explain'))
def _run(params, lm_params, tokens_BL, mask_BL, *, config: ExamConfig, top: int, explain: bool):
  """Returns (logits, of each column (likeliest classes, their scores and contributions [B, top, P]); () if not explained)."""
  if not explain:
    return exam.logits(params, config, tokens_BL, mask_BL, lm_params), ()
  scores_BCP, parts_BCP, rest_BC, _ = exam.scores(params, config, tokens_BL, mask_BL, lm_params)
  logits_BC = jnp.sum(parts_BCP, axis=-1) + rest_BC
  found, first = [], 0
  for column, logits in zip(config.columns, exam.column_logits(config, logits_BC)):
    classes_Bn = jax.lax.top_k(logits, min(top, column.classes))[1]
    pick = lambda x, at: jnp.take_along_axis(x, at[:, :, None], axis=1)
    found.append((classes_Bn, pick(scores_BCP, classes_Bn + first), pick(parts_BCP, classes_Bn + first)))
    first += column.classes
  return logits_BC, tuple(found)


def encode(model: TextClassifier, texts: Sequence[str], names: Sequence[str] | None = None) -> list[list[int]]:
  """Returns the ids of the words of each text that the model reads.

  Args:
    model: a classifier with words and labels.
    texts: texts.
    names: what messages call each text; None: 'Text 0' and so on.

  Raises:
    ValueError: there is no text, one is no string or has no word, or the model has no words.
  """
  if not isinstance(model, TextClassifier):
    raise ValueError(f'Classification needs a text classifier (TextClassifier), not a {type(model).__name__}.')
  if model.tokenizer is None:
    raise ValueError('This classifier has no words and labels: load it from its run directory with jaxlm.load.')
  if isinstance(texts, str):
    raise ValueError('`texts` is a list of texts: wrap a single one in a list.')
  if not len(texts):
    raise ValueError('`texts` is empty: pass at least one text.')
  found = []
  for i, text in enumerate(texts):
    name = f'Text {i}' if names is None else names[i]
    if not isinstance(text, str):
      raise ValueError(f'{name} is {type(text).__name__}; expected a string.')
    ids = model.tokenizer.encode(text, model.config)
    if not ids:
      raise ValueError(f'{name} is empty: {text[:40]!r} has no word.')
    found.append(ids)
  return found


def classify(
  model: TextClassifier,
  texts: Sequence[str],
  *,
  top: int = 5,
  explain: bool = False,
  batch_size: int | None = None,
  progress: Callable[[int], object] | None = None,
) -> Classifications:
  """Returns the likeliest labels of each text, in every label column. A text's labels do not depend on the other texts.

  Args:
    model: a classifier, from `jaxlm.load` of a run of trainers.classify.
    texts: strings. Words beyond the model's length are not read.
    top: number of labels of each text and column; fewer if a column has fewer.
    explain: also return what each word adds to the logits of these labels.
    batch_size: number of texts that are classified together; None: 64, or 16 with `explain`.
    progress: called with the number of texts of each batch when it is classified.

  Raises:
    ValueError: as `encode`, or a number is out of range.
    NotFiniteError: the logits of a text are not finite.
  """
  if top < 1 or (batch_size is not None and batch_size < 1):
    raise ValueError(f'{top=} and {batch_size=} must be at least 1.')
  ids, c, reader = encode(model, texts), model.config, model.tokenizer
  size = min(batch_size or (EXPLAINED_AT_ONCE if explain else BATCH_SIZE), 1 << (len(ids) - 1).bit_length())
  clock, logits, explained = Clock(), [], []
  for first in range(0, len(ids), size):
    rows = ids[first : first + size]
    # Rows that only fill the batch repeat the last text, which has words.
    tokens, mask = padded([*rows, *[rows[-1]] * (size - len(rows))], c)
    found = clock.run(
      'classify',
      _run,
      model.params,
      model.lm_params,
      jnp.asarray(tokens),
      jnp.asarray(mask),
      config=c,
      top=top,
      explain=explain,
    )
    logits.append(np.asarray(found[0])[: len(rows)])
    explained += _rows(found[1], len(rows))
    if progress is not None:
      progress(len(rows))
  logits = np.concatenate(logits)
  _check_finite(model, logits)
  columns, first = {}, 0
  for i, column in enumerate(c.columns):
    part = logits[:, first : first + column.classes]
    first += column.classes
    contributions = None
    if explain:
      contributions = [
        _contributions(c, reader.pieces(text, c), reader.labels[i], part[row], explained[row][i])
        for row, text in enumerate(texts)
      ]
    columns[column.name] = _column(
      column, reader.labels[i], part, top, reader.thresholds.get(column.name), contributions
    )
  seconds = clock.seconds['classify']
  stats = {
    'texts': len(ids), 'seconds': seconds, 'compile_seconds': clock.compile_seconds, 'texts_per_second': len(ids) / seconds
  }  # fmt: skip
  return Classifications(columns, stats)


def _rows(columns: Sequence[tuple], n: int) -> list[list[tuple]]:
  """Returns what `_run` says of the columns as [text][column]."""
  arrays = [tuple(np.asarray(x)[:n] for x in column) for column in columns]
  return [[tuple(x[row] for x in column) for column in arrays] for row in range(n)] if arrays else []


def _check_finite(model: TextClassifier, logits: np.ndarray) -> None:
  finite = np.isfinite(logits).all(axis=1)
  if not finite.all():
    raise NotFiniteError(
      f'Text {int(np.argmin(finite))}: its logits are not finite. The model computes in {model.config.dtype}: check that its weights are '
      'finite, or load it in float32.'
    )


def _column(column: Any, labels, logits, top, thresholds, contributions) -> ColumnResult:
  logits = logits.astype(np.float64)
  order = np.argsort(-logits, axis=1, kind='stable')[:, :top]
  if column.multilabel:
    p = np.exp(-np.logaddexp(0, -logits))
    limits = 0.5 if thresholds is None else thresholds.reshape(1, -1)
    chosen = [sorted(np.flatnonzero(row), key=lambda c, b=b: -logits[b, c]) for b, row in enumerate(p >= limits)]
  else:
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    chosen = order[:, :1]
  name = lambda rows: [[labels[c] for c in row] for row in rows]
  probabilities = np.take_along_axis(p, order, axis=1).astype(np.float32)
  return ColumnResult(column.name, name(order), probabilities, name(chosen), contributions)


def _contributions(config: ExamConfig, words: list[str], labels, logits, explained) -> Contributions:
  classes, scores, parts = explained
  scores, parts = (by_word(config, x, len(words)) for x in (scores, parts))
  logits = logits[classes]
  rest = logits - parts.sum(axis=1, dtype=np.float32)
  return Contributions(words, [labels[c] for c in classes], parts, scores, rest, logits)


def by_word(config: ExamConfig, scores: np.ndarray, words: int) -> np.ndarray:
  """Returns the scores [labels, positions] of a text of `words` words as [labels, words].

  The score of an n-gram is shared equally by its words. Words at the end that are only read as neighbours have none.
  """
  first = config.padding_in_front if config.side == 'right' else config.max_length - words
  found = np.zeros((len(scores), words), np.float32)
  if config.encoder == 'ngrams':
    begin = 0
    for n in range(1, min(config.ngrams, config.max_length) + 1):
      block = scores[:, begin : begin + config.max_length - n + 1]
      begin += block.shape[1]
      for j in range(n):  # The n-gram at a word's place minus j has the word as its word j.
        places = first + np.arange(words) - j
        real = (places >= first) & (places + n <= first + words)
        found[:, real] += block[:, places[real]] / n
    return found
  places = first + np.arange(words) - config.radius
  real = (places >= 0) & (places < scores.shape[1])
  found[:, real] = scores[:, places[real]]
  return found
