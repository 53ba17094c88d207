"""SimLayerKV's functions: decoding with cut caches in lazy layers, measuring lazy ratios, and choosing a threshold from them."""

from collections.abc import Sequence

import numpy as np

from decoders.output import Output
from decoders.plain import generate as generate_plain
from decoders.prompts import encode
from decoders.simlayerkv.config import LazyConfig, cache_bytes, select_lazy
from decoders.simlayerkv.memory import LazyMemory
from jaxlm.language_model import LanguageModel


def generate(
  lm: LanguageModel,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  max_new_tokens: int = 64,
  lazy: LazyConfig = LazyConfig(),
  **options,
) -> Output:
  """Continues each prompt with smaller caches in its lazy layers.

  Args:
    prompts, max_new_tokens: as for `decoders.generate`.
    lazy: which layers are lazy, and which tokens they keep.
    options: all other arguments of `decoders.generate`.

  Raises:
    ValueError: as `decoders.generate`; attention weights that can be negative, for which no lazy ratio is defined; activations
      that are not finite; layers, budgets or groups that do not fit the model.
  """
  memory = LazyMemory(lazy, lm.config)
  return generate_plain(lm, prompts, max_new_tokens=max_new_tokens, memory=memory, **options)


def lazy_scores(
  lm: LanguageModel, prompts: Sequence[str] | Sequence[Sequence[int]], lazy: LazyConfig = LazyConfig(), **options
) -> np.ndarray:
  """Returns the lazy ratio of each prompt's layers, float32 [B, L]; arguments as for `generate`."""
  memory = LazyMemory(lazy.replace(threshold=1.0, n_full=None, budget=None, quant=None), lm.config)
  # The prefill chooses the first token, and the scored step chooses the second. Without a third token, rows would be done after
  # that step, and LazyMemory.compress would drop their ratios.
  generate_plain(lm, prompts, max_new_tokens=3, eos_id=None, memory=memory, **options)
  return np.stack(memory.ratios)


def calibrate_threshold(
  lm: LanguageModel,
  texts: Sequence[str] | Sequence[Sequence[int]],
  target_ratio: float,
  lazy: LazyConfig = LazyConfig(),
  **options,
) -> float:
  """Returns the highest threshold at which the caches of these texts together are at least `target_ratio` times smaller.

  Args:
    texts: texts to measure, about as long as those that will be decoded.
    target_ratio: bytes of the full caches over bytes kept, quantisation included if `lazy` has it.
    lazy: all other settings; its threshold, n_full and budget are ignored.
    options: arguments of `decoders.generate`, such as batch_size.

  Raises:
    ValueError: the caches do not become that small even if all layers are lazy.
  """
  lazy = lazy.replace(n_full=None, budget=None)
  lengths = [len(ids) for ids in encode(lm, texts, options.get('direction'))]
  ratios = lazy_scores(lm, texts, lazy, **options)

  def compression(threshold: float) -> float:
    chosen = select_lazy(ratios, np.array(lengths), lazy.replace(threshold=threshold), lm.config).sum(axis=1)
    kept = sum(cache_bytes(lm.config, n, int(z), lazy.kept, lazy.quant) for n, z in zip(lengths, chosen))
    return sum(cache_bytes(lm.config, n, 0, lazy.kept) for n in lengths) / kept

  # A layer is lazy if its ratio is above the threshold, so the candidates are the numbers just below each ratio.
  steps = np.unique(np.nextafter(ratios.ravel(), np.float32(0)))[::-1]
  for threshold in [1.0, *steps.tolist(), 0.0]:
    if compression(threshold) >= target_ratio:
      return threshold
  raise ValueError(
    f'{target_ratio=} is out of reach: with all layers lazy the caches are {compression(0.0):.2f} times smaller. '
    'Keep fewer tokens (n_recent), or quantise (quant).'
  )
