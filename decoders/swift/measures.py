"""Measures of a skip set without generating: the share of tokens that it predicts, and the bytes that a draft step reads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from decoders.prefill import prefill
from decoders.swift import skipping
from decoders.swift.sets import SkipSet
from jaxlm.language_model import LanguageModel


def matchness(
  lm: LanguageModel, ids: Sequence[int], sets: Sequence[SkipSet], window: int | None = None, at_once: int = 8
) -> np.ndarray:
  """Returns the matchness of each set, [C] float32: the share of a text's last tokens that the model predicts without the set.

  Args:
    ids: the text, best one that the model generated.
    window: number of last tokens to predict (None: half of the text).
    at_once: number of sets scored in one pass.

  Raises:
    ValueError: a window that is longer than the text allows, or a set that the model cannot skip.
  """
  window = len(ids) // 2 if window is None else window
  if not 1 <= window < len(ids):
    raise ValueError(f'{window=} must be at least 1 and less than the {len(ids)} tokens of the text.')
  text, total = jnp.asarray([list(ids)], jnp.int32), jnp.asarray([len(ids)])
  _, cache = prefill(lm.params, text, total, total, config=lm.config, capacity=len(ids))
  keep = np.stack([s.keep(lm.config.num_layers) for s in sets])
  first, valid, static = total - window - 1, jnp.ones(1, bool), {'config': lm.config, 'window': window}
  parts = [keep[i : i + at_once] for i in range(0, len(keep), at_once)]
  score = lambda part: skipping.scores(lm.params, jnp.asarray(part), text, first, valid, total, cache, **static)[0]
  return np.concatenate([score(part) for part in parts])


def draft_bytes(lm: LanguageModel) -> tuple[np.ndarray, float]:
  """Returns (bytes of each sub-layer's parameters [d], as `SkipSet.vector` orders them; bytes that a draft step always reads)."""
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  layers = [lm.params[f'layer_{i}'] for i in range(lm.config.num_layers)]
  attention, mlp = (
    [sum(size(v) for k, v in layer.items() if k.startswith(part)) for layer in layers] for part in ('attention', 'mlp')
  )
  head = lm.params['embed'] if lm.config.tied_embeddings else lm.params['head']
  always = attention[0] + attention[-1] + mlp[0] + mlp[-1] + size(head)
  return np.array(attention[1:-1] + mlp[1:-1], float), float(always)
