"""jaxlm: how language models attend, decode and learn order, in JAX and Flax.

  lm = jaxlm.load(path)              # a run directory, a Hugging Face directory, a .gguf file, or a fetched name
  logits = jaxlm.forward(lm, tokens)

Names are imported on first use, so that importing jaxlm (and showing a command's help) costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxlm.language_model import LanguageModel as LanguageModel
  from jaxlm.language_model import forward as forward
  from jaxlm.language_model import load as load
  from jaxlm.language_model import save_huggingface as save_huggingface

__version__ = '0.1.0'

_PUBLIC = dict.fromkeys(('LanguageModel', 'forward', 'load', 'save_huggingface'), 'jaxlm.language_model')
_MODULES = ('analysis', 'caches', 'config', 'data', 'io', 'losses', 'models')


def __getattr__(name: str):
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  if name in _MODULES:
    return importlib.import_module(f'jaxlm.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), *_PUBLIC, *_MODULES])
