"""Ways of decoding: plain here, and one module for each other way.

  out = decoders.generate(lm, prompts, max_new_tokens=64, sampling=decoders.Sampling(temperature=0.8), seed=0)

Names are imported on first use, so that a command's help costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from decoders.options import Sampling as Sampling
  from decoders.output import Output as Output
  from decoders.plain import generate as generate

# The function lives in `plain`: `decoders.generate` as a module is the command line, which nothing imports.
_PUBLIC = {'generate': 'decoders.plain', 'Sampling': 'decoders.options', 'Output': 'decoders.output'}


_MODULES = ('simlayerkv', 'speculative', 'swift')


def __getattr__(name: str):
  if name in _MODULES:
    return importlib.import_module(f'decoders.{name}')
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), *_PUBLIC, *_MODULES])
