"""Decoders: plain decoding in the files of this package, and a subpackage for each other method.

  out = decoders.generate(lm, prompts, max_new_tokens=64, sampling=decoders.Sampling(temperature=0.8), seed=0)

Names are imported on first use, so that a command's `--help` does not import JAX.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.classification.classifier import classify as classify
  from decoders.options import Sampling as Sampling
  from decoders.output import Output as Output
  from decoders.plain import generate as generate
  from decoders.translation.translator import translate as translate

# `decoders.generate` is the function in decoders/plain.py, `decoders.translate` the one in decoders/translation/translator.py and
# `decoders.classify` the one in decoders/classification/classifier.py. The modules of these names are command lines, and nothing
# imports them.
_PUBLIC = {
  'classify': 'decoders.classification.classifier',
  'generate': 'decoders.plain',
  'translate': 'decoders.translation.translator',
  'Sampling': 'decoders.options',
  'Output': 'decoders.output',
}
_MODULES = ('atspeed', 'beam', 'classification', 'glide', 'simlayerkv', 'speculative', 'swift', 'translation')
__getattr__, __dir__ = lazily(__name__, _PUBLIC, _MODULES)
