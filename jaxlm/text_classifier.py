"""A text classifier in one value: config, parameters, words and labels, and the language model that it may read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxlm import language_model
from jaxlm.config import ModelConfig, computing_fields
from jaxlm.data import text_reader
from jaxlm.data.text_reader import TextReader
from jaxlm.errors import CheckpointError
from jaxlm.exam_config import Backbone, ExamConfig, exam_config
from jaxlm.io import digest
from jaxlm.models import exam
from jaxlm.models.registry import RunKind


@dataclasses.dataclass(frozen=True)
class TextClassifier:
  """A classifier with its parameters and what reads texts for it. `decoders.classify` labels texts with it.

  Attributes:
    config: its shape.
    params: its parameters.
    tokenizer: words and labels; None for a classifier that was not loaded from a run.
    lm_params: parameters of the frozen language model of encoder='lm', else None.
  """

  config: ExamConfig
  params: Any
  tokenizer: TextReader | None = None
  lm_params: Any = None

  def __repr__(self) -> str:
    c, size = self.config, sum(x.size for x in jax.tree.leaves(self.params))
    columns = ', '.join(f'{column.name}: {column.classes} labels' for column in c.columns)
    reads = f' of {c.lm.name}' if c.encoder == 'lm' else f', vocabulary {c.vocab_size}'
    return f'TextClassifier({c.encoder}{reads}, {c.aggregator}, {size / 1e6:.1f} M parameters, {columns})'


def weights_digest(params: Any) -> str:
  """Returns a digest of all parameters, which begins with the dtype of the first of them."""
  return f'{jax.tree.leaves(params)[0].dtype.name}:{digest.of_tree(params)[:16]}'


def frozen_params(backbone: Backbone, dtype: str, mesh: Any = None) -> Any:
  """Returns the parameters of a frozen language model.

  Args:
    backbone: the model and where it is.
    dtype: dtype of the parameters.
    mesh: devices over which they are split, as for `jaxlm.load`.

  Raises:
    CheckpointError: the model is not there, or is not the one that the classifier was trained with.
  """
  advice = 'A classifier with a frozen language model needs that model: put it back, or train with --model.train-lm.'
  try:
    lm = language_model.load(backbone.name, dtype=dtype, mesh=mesh, tokenizer=None)
  except CheckpointError as e:
    raise CheckpointError(f'The language model {backbone.name!r} cannot be loaded: {e} {advice}') from e
  if not isinstance(lm, language_model.LanguageModel) or _shape(lm.config) != _shape(backbone.model):
    raise CheckpointError(
      f'{backbone.name} holds another model than the one that the classifier was trained with. {advice}'
    )
  found = weights_digest(lm.params)
  same_type = found.split(':')[0] == backbone.digest.split(':')[0]
  if same_type and found != backbone.digest:
    raise CheckpointError(
      f'The parameters of {backbone.name} have the digest {found}; the classifier was trained with {backbone.digest}. {advice}'
    )
  return lm.params


def _shape(model: ModelConfig) -> dict[str, Any]:
  return computing_fields(model.replace(dtype='float32'))


def _result(config: ExamConfig, params: Any, reader: TextReader | None) -> TextClassifier:
  if reader is not None and reader.columns != config.columns:
    raise CheckpointError(
      f'The labels of the run ({_columns(reader.columns)}) do not fit its config ({_columns(config.columns)}).'
    )
  lm_params = frozen_params(config.lm, config.dtype) if config.has_frozen_lm else None
  return TextClassifier(config, params, reader, lm_params)


def _columns(columns) -> str:
  return ', '.join(f'{column.name}: {column.classes}' for column in columns)


RUNS = RunKind('a text classifier', exam_config, exam.abstract_params, _result, text_reader.load)
