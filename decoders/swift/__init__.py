"""SWIFT (https://arxiv.org/abs/2410.06916): a model drafts for itself with some of its sub-layers skipped.

  out = decoders.swift.generate(lm, prompts, swift=SwiftConfig())
  stream = decoders.swift.Stream(lm, SwiftConfig())     # continues the search from request to request
  out = stream.generate(prompts)

The search for the sub-layers to skip runs while tokens are generated. A set's score is the share of the latest tokens that the
model predicts without these sub-layers. The output is the same as that of plain decoding, for every set.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.swift.config import SwiftConfig as SwiftConfig
  from decoders.swift.loop import SwiftLoop as SwiftLoop
  from decoders.swift.measures import draft_bytes as draft_bytes
  from decoders.swift.measures import matchness as matchness
  from decoders.swift.sets import SkipSet as SkipSet
  from decoders.swift.stream import Stream as Stream
  from decoders.swift.stream import generate as generate

_PUBLIC = {
  **dict.fromkeys(('SwiftConfig',), 'decoders.swift.config'),
  **dict.fromkeys(('SkipSet',), 'decoders.swift.sets'),
  **dict.fromkeys(('SwiftLoop',), 'decoders.swift.loop'),
  **dict.fromkeys(('draft_bytes', 'matchness'), 'decoders.swift.measures'),
  **dict.fromkeys(('Stream', 'generate'), 'decoders.swift.stream'),
}
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
