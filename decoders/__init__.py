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
  from decoders.translation.translator import translate as translate

# The functions live elsewhere: `decoders.generate` and `decoders.translate` as modules are command lines, which nothing imports.
_PUBLIC = {
  'generate': 'decoders.plain',
  'translate': 'decoders.translation.translator',
  'Sampling': 'decoders.options',
  'Output': 'decoders.output',
}
_MODULES = ('beam', 'simlayerkv', 'speculative', 'swift', 'translation')
__getattr__, __dir__ = lazily(__name__, _PUBLIC, _MODULES)
