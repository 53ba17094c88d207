"""Labels of texts and the words that speak for them. The public function is `decoders.classify`."""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.classification.heatmap import html as html
  from decoders.classification.heatmap import picture as picture
  from decoders.classification.output import Classifications as Classifications
  from decoders.classification.output import ColumnResult as ColumnResult
  from decoders.classification.output import Contributions as Contributions

_PUBLIC = dict.fromkeys(('Classifications', 'ColumnResult', 'Contributions'), 'decoders.classification.output')
_PUBLIC |= dict.fromkeys(('html', 'picture'), 'decoders.classification.heatmap')
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
