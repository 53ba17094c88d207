"""Loads a model that can translate text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxlm.translation_model import Seq2SeqModel


def load_model(path: str, dtype: str | None) -> 'Seq2SeqModel':
  """Returns the model of a path; `path` and `dtype` are as for `jaxlm.load`.

  Raises:
    ValueError: as `jaxlm.load`, and if the model is no encoder-decoder or has no tokenizer.
  """
  import jaxlm
  from jaxlm.translation_model import Seq2SeqModel

  model = jaxlm.load(path, dtype=dtype)
  if not isinstance(model, Seq2SeqModel):
    raise ValueError(f'{path} is no encoder-decoder but a {type(model).__name__}: it cannot translate.')
  if model.tokenizer is None:
    raise ValueError(f'{path} has no tokenizer, so it cannot read text.')
  return model
