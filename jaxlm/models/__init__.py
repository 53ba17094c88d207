"""Models: blocks, the transformer, its pure functions, and the sharding of parameters.

  hidden_BTD, cache = jaxlm.models.hidden(params, config, tokens)    # states after the final norm
  logits_BTV = jaxlm.models.logits(params, config, hidden_BTD)       # float32

Names are imported on first use, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from jaxlm.models.functions import hidden as hidden
  from jaxlm.models.functions import logits as logits

_PUBLIC = dict.fromkeys(('hidden', 'logits'), 'jaxlm.models.functions')
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
