"""Registry of trainers: how `jaxlm.load` reads a run directory, by the trainer named in its config.json."""

from collections.abc import Callable
import dataclasses
import importlib
from typing import Any

from jaxlm import config as configs
from jaxlm.models import transformer


@dataclasses.dataclass(frozen=True)
class RunKind:
  """How the runs of one trainer are read.

  Attributes:
    what: description of the model for error messages.
    read_config: maps the field "model" of config.json to the model's config, which needs `dtype` and `replace`. Raises
      ValueError for unknown fields.
    abstract_params: maps the model's config to its parameters as shapes and dtypes.
    result: maps (config, parameters, tokenizer or None) to the result of `jaxlm.load`; None: a `jaxlm.LanguageModel`.
    load_tokenizer: maps the run's tokenizer folder to its tokenizer; None: the tokenizer of a language model.
  """

  what: str
  read_config: Callable[[dict[str, Any]], Any]
  abstract_params: Callable[[Any], Any]
  result: Callable[[Any, Any, Any], Any] | None = None
  load_tokenizer: Callable[[Any], Any] | None = None


LANGUAGE_MODEL = RunKind('a decoder-only language model', configs.model_config, transformer.abstract_params)

# A text names a module and a RunKind in it, which is imported when such a run is met: it knows more than models may.
_kinds: dict[str, RunKind | str] = {
  'pretrain': LANGUAGE_MODEL,
  'translate': 'jaxlm.translation_model:RUNS',
  'glide': 'jaxlm.glide_model:RUNS',
  'classify': 'jaxlm.text_classifier:RUNS',
  'recommend': 'jaxlm.data.catalogue:RUNS',
}


def register(trainer: str, kind: RunKind) -> None:
  """Registers a trainer, so that `jaxlm.load` can read its runs. `trainer`: the name in config.json (`Task.trainer`)."""
  _kinds[trainer] = kind


def known() -> tuple[str, ...]:
  """Returns the names of the registered trainers."""
  return tuple(_kinds)


def run_kind(trainer: str) -> RunKind:
  """Returns the RunKind of a trainer. Runs of a trainer that is not registered are read as language models."""
  found = _kinds.get(trainer, LANGUAGE_MODEL)
  if isinstance(found, str):
    module, name = found.split(':')
    return getattr(importlib.import_module(module), name)
  return found
