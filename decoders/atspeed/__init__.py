"""AtSpeed (https://arxiv.org/abs/2410.05165): beam search over the items of a catalogue, with a draft that searches ahead.

  trie = ItemTrie.from_ids(codes)    # jaxlm.data.item_trie
  out = decoders.atspeed.recommend(lm, draft, trie, histories, k=10)

With verify='strict' the items are those that the model finds alone (draft=None), whatever the draft proposes.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.atspeed.config import AtSpeedConfig as AtSpeedConfig
  from decoders.atspeed.output import Recommendations as Recommendations
  from decoders.atspeed.recommender import recommend as recommend

_PUBLIC = {
  'AtSpeedConfig': 'decoders.atspeed.config',
  'Recommendations': 'decoders.atspeed.output',
  'recommend': 'decoders.atspeed.recommender',
}
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
