"""jaxlm: how language models attend, decode and learn order, in JAX and Flax.

  lm = jaxlm.load(path)              # a run directory, a Hugging Face directory, a .gguf file, or a fetched name
  logits = jaxlm.forward(lm, tokens)

Names are imported on first use, so that importing jaxlm (and showing a command's help) costs nothing.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from jaxlm.glide_model import GlideDraft as GlideDraft
  from jaxlm.language_model import LanguageModel as LanguageModel
  from jaxlm.language_model import forward as forward
  from jaxlm.language_model import load as load
  from jaxlm.language_model import save_huggingface as save_huggingface
  from jaxlm.text_classifier import TextClassifier as TextClassifier
  from jaxlm.translation_model import Seq2SeqModel as Seq2SeqModel

__version__ = '0.1.0'

_PUBLIC = dict.fromkeys(('LanguageModel', 'forward', 'load', 'save_huggingface'), 'jaxlm.language_model')
_PUBLIC |= {
  'GlideDraft': 'jaxlm.glide_model',
  'Seq2SeqModel': 'jaxlm.translation_model',
  'TextClassifier': 'jaxlm.text_classifier',
}
_MODULES = ('analysis', 'attention', 'caches', 'config', 'data', 'evaluation', 'io', 'lm_states', 'losses', 'models')
__getattr__, __dir__ = lazily(__name__, _PUBLIC, _MODULES)
