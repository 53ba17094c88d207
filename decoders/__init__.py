"""Ways of decoding: plain in the files here, and a room for each other way.

  out = decoders.generate(lm, prompts, max_new_tokens=64, sampling=decoders.Sampling(temperature=0.8), seed=0)

Names are imported on first use, so that a command's help costs nothing.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.options import Sampling as Sampling
  from decoders.output import Output as Output
  from decoders.plain import generate as generate

# The function lives in `plain`: `decoders.generate` as a module is the command line, which nothing imports.
_PUBLIC = {'generate': 'decoders.plain', 'Sampling': 'decoders.options', 'Output': 'decoders.output'}
_MODULES = ('simlayerkv', 'speculative', 'swift')
__getattr__, __dir__ = lazily(__name__, _PUBLIC, _MODULES)
