"""SimLayerKV (https://arxiv.org/abs/2410.13846): layers that only look at the first and the latest tokens keep only those.

  out = decoders.simlayerkv.generate(lm, prompts, lazy=LazyConfig(threshold=0.9))
  context = decoders.simlayerkv.compress(lm, [document])        # reads the document once
  out = context.ask(lm, ['What is ...?'])                       # any number of times

The prompt is read with a full cache, and each layer's lazy ratio is measured. The full caches of lazy layers are replaced by
smaller ones and deleted. Plain decoding continues with the smaller caches. The full cache gives the first two generated tokens
with `stage='decode'`, and only the first one with `stage='prefill'`.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.simlayerkv.config import PRESETS as PRESETS
  from decoders.simlayerkv.config import THRESHOLDS as THRESHOLDS
  from decoders.simlayerkv.config import LazyConfig as LazyConfig
  from decoders.simlayerkv.config import cache_bytes as cache_bytes
  from decoders.simlayerkv.config import compression_ratio as compression_ratio
  from decoders.simlayerkv.config import preset as preset
  from decoders.simlayerkv.config import select_lazy as select_lazy
  from decoders.simlayerkv.context import Context as Context
  from decoders.simlayerkv.context import compress as compress
  from decoders.simlayerkv.decode import calibrate_threshold as calibrate_threshold
  from decoders.simlayerkv.decode import generate as generate
  from decoders.simlayerkv.decode import lazy_scores as lazy_scores
  from decoders.simlayerkv.memory import LazyMemory as LazyMemory
  from jaxlm.cache_config import KiviConfig as KiviConfig

_PUBLIC = {
  **dict.fromkeys(
    ('PRESETS', 'THRESHOLDS', 'LazyConfig', 'cache_bytes', 'compression_ratio', 'preset', 'select_lazy'),
    'decoders.simlayerkv.config',
  ),
  **dict.fromkeys(('Context', 'compress'), 'decoders.simlayerkv.context'),
  **dict.fromkeys(('calibrate_threshold', 'generate', 'lazy_scores'), 'decoders.simlayerkv.decode'),
  **dict.fromkeys(('LazyMemory',), 'decoders.simlayerkv.memory'),
  **dict.fromkeys(('KiviConfig',), 'jaxlm.cache_config'),
}
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
