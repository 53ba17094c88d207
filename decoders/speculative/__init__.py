"""Speculative decoding: a cheap drafter proposes several tokens, and the model verifies them in one call.

  out = decoders.speculative.generate(lm, prompts, drafter=PromptLookup())

A drafter proposes a tree of tokens for each row; `decoders.speculative.rounds` verifies it. With the rule `match` the
tokens are those of plain decoding, whatever the drafter proposes.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.speculative.combined import CombinedDrafter as CombinedDrafter
  from decoders.speculative.combined import Together as Together
  from decoders.speculative.draft_model import DraftModel as DraftModel
  from decoders.speculative.loop import SpeculativeLoop as SpeculativeLoop
  from decoders.speculative.loop import generate as generate
  from decoders.speculative.prompt_lookup import PromptLookup as PromptLookup
  from decoders.speculative.rounds import Drafter as Drafter
  from decoders.speculative.rounds import SpeculativeState as SpeculativeState

_PUBLIC = {
  **dict.fromkeys(('DraftModel',), 'decoders.speculative.draft_model'),
  **dict.fromkeys(('SpeculativeLoop', 'generate'), 'decoders.speculative.loop'),
  **dict.fromkeys(('PromptLookup',), 'decoders.speculative.prompt_lookup'),
  **dict.fromkeys(('Drafter', 'SpeculativeState'), 'decoders.speculative.rounds'),
  **dict.fromkeys(('CombinedDrafter', 'Together'), 'decoders.speculative.combined'),
}
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
