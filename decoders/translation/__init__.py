"""Translation with an encoder-decoder: beam search, greedy decoding and sampling. The public function is `decoders.translate`."""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.translation.output import Translations as Translations

_PUBLIC = {'Translations': 'decoders.translation.output'}
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
