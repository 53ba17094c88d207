"""Which model each trainer's runs hold: what `jaxlm.load` needs to open a run directory, by the trainer that its config.json names."""

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
    what: the model in words, for messages.
    read_config: the "model" of config.json -> the model's config, which has a `dtype` and `replace`. Raises ValueError for fields
      that it does not know.
    abstract_params: the model's config -> its parameters as shapes and dtypes.
    result: (config, parameters, tokenizer or None) -> what `jaxlm.load` returns; None: a `jaxlm.LanguageModel`.
    load_tokenizer: folder -> the tokenizer that the run directory holds; None: as that of a language model.
  """

  what: str
  read_config: Callable[[dict[str, Any]], Any]
  abstract_params: Callable[[Any], Any]
  result: Callable[[Any, Any, Any], Any] | None = None
  load_tokenizer: Callable[[Any], Any] | None = None


LANGUAGE_MODEL = RunKind('a decoder-only language model', configs.model_config, transformer.abstract_params)

# A text names a module and a RunKind in it, which is imported when such a run is met: it knows more than models may.
_kinds: dict[str, RunKind | str] = {'pretrain': LANGUAGE_MODEL, 'translate': 'jaxlm.translation_model:RUNS'}


def register(trainer: str, kind: RunKind) -> None:
  """Lets `jaxlm.load` open the runs of a further trainer: `Task.trainer`, as config.json has it."""
  _kinds[trainer] = kind


def known() -> tuple[str, ...]:
  """Returns the trainers whose runs are known."""
  return tuple(_kinds)


def run_kind(trainer: str) -> RunKind:
  """Returns how the runs of a trainer are read. Those of a trainer that nobody registered are taken for language models."""
  found = _kinds.get(trainer, LANGUAGE_MODEL)
  if isinstance(found, str):
    module, name = found.split(':')
    return getattr(importlib.import_module(module), name)
  return found
