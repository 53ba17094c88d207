"""GliDe with CaPE (https://arxiv.org/abs/2402.02082): a draft model that reads the target's cache, and confidence-widened trees.

  draft = jaxlm.load(run)    # a run of trainers.glide
  out = decoders.glide.generate(lm, draft, prompts, glide=GlideDecoding(max_draft=4))

With the rule `match` the output is the same as that of plain decoding, whatever the draft proposes.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.glide.config import PAPER_BINS as PAPER_BINS
  from decoders.glide.config import GlideDecoding as GlideDecoding
  from decoders.glide.drafter import GlideDrafter as GlideDrafter
  from decoders.glide.loop import GlideLoop as GlideLoop
  from decoders.glide.loop import Stream as Stream
  from decoders.glide.loop import generate as generate

_PUBLIC = {
  **dict.fromkeys(('PAPER_BINS', 'GlideDecoding'), 'decoders.glide.config'),
  **dict.fromkeys(('GlideDrafter',), 'decoders.glide.drafter'),
  **dict.fromkeys(('GlideLoop', 'Stream', 'generate'), 'decoders.glide.loop'),
}
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
