"""SimLayerKV's settings, and the choice of lazy layers. This file does not import JAX, so that a command shows its help at once.

SimLayerKV (v1 of https://arxiv.org/abs/2410.13846) trims a layer whose lazy ratio is above a threshold; LightTransfer
(v2) keeps a fixed number of layers whole, those with the lowest ratios.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxlm.cache_config import KiviConfig
from jaxlm.config import ModelConfig
from jaxlm.errors import unknown


@dataclasses.dataclass(frozen=True)
class LazyConfig:
  """Which layers are lazy, and which tokens a lazy layer keeps. One of `threshold`, `n_full` and `budget` may choose the layers.

  The lazy ratio of a layer is the share of attention that goes to the first n_initial and the latest score_recent tokens."""

  n_initial: int = 4
  """Number of the first tokens of a text that a lazy layer keeps."""
  n_recent: int = 1020
  """Number of the latest tokens that a lazy layer keeps. Fewer: less memory, and more of the text is forgotten."""
  threshold: float | None = None
  """Layers whose lazy ratio, in [0, 1], is above this are lazy. 1: no layer is. (none: n_full or budget decides.)"""
  n_full: int | None = None
  """Number of layers that are not lazy and keep every token: those with the lowest lazy ratios. Fewer: less memory.
  (none: threshold or budget decides if one is given; otherwise half of the layers are full.)"""
  budget: int | None = None
  """Largest size in bytes of a row's cache after its prompt: as many layers keep every token as fit. (none: threshold or n_full
  decides.)"""
  stage: Literal['decode', 'prefill'] = 'decode'
  """When lazy layers are found and cut. decode: after the first generated token is read, from its attention. prefill: after the
  prompt is read, from the attention of its last n_last tokens."""
  n_last: int = 1
  """For stage prefill: number of the prompt's last tokens whose attention gives the lazy ratio."""
  score_recent: int | None = None
  """Number of latest tokens whose attention counts for the lazy ratio (none: n_recent)."""
  include_self: bool = True
  """Count the attention of a token to itself as attention to a recent token."""
  growth: Literal['append', 'ring'] = 'append'
  """What lazy layers do with generated tokens. append: they keep all. ring: each new token replaces the oldest of the n_recent,
  so that memory stays constant."""
  batch: Literal['all', 'mean', 'group'] = 'group'
  """How the lazy layers of several rows are found. group: each row has its own lazy layers. all: the rows share them, by each
  layer's lowest ratio over the rows. mean: the rows share them, by each layer's mean ratio over the rows."""
  keep: Literal['window', 'snapkv', 'h2o'] = 'window'
  """Which tokens a lazy layer keeps, n_initial + n_recent in each case. window: the first and the latest ones. snapkv: in each head
  the latest n_observed, and those to which these attend most. h2o: in each head the latest half, and those to which all tokens of
  the prompt attend most. With n_full 0 snapkv and h2o are the methods of these names."""
  n_observed: int = 32
  """For keep snapkv: number of the prompt's latest tokens whose attention chooses what is kept; they are kept too."""
  prefill: Literal['whole', 'layerwise'] = 'whole'
  """How the prompt is read. whole: by all layers, then lazy layers are cut. layerwise: each layer is cut before the next one is
  computed, which saves memory with long prompts. layerwise needs stage prefill and layout static, and rows that are read together
  must share their lazy layers."""
  layout: Literal['pooled', 'static'] = 'pooled'
  """How the compiled program knows which layers are lazy. pooled: they are data, and one program serves all prompts with the same
  number of lazy layers. static: they are part of the program. A program is compiled for each choice of lazy layers, and rows with
  different lazy layers are decoded separately."""
  exempt_layers: tuple[int, ...] = ()
  """Numbers of layers that are never lazy, from 0; negative ones count from the last layer."""
  quant: KiviConfig | None = None
  """Bits and groups with which the caches of all layers, lazy or not, are quantised (none: they are exact). With threshold 1 no
  layer is lazy, and quantising alone saves memory."""

  def __post_init__(self):
    for name, least in (
      ('n_initial', 0),
      ('n_recent', 1),
      ('n_last', 1),
      ('score_recent', 1),
      ('n_full', 0),
      ('n_observed', 1),
    ):
      if (value := getattr(self, name)) is not None and value < least:
        raise ValueError(f'{name}={value} must be at least {least}.')
    if self.threshold is not None and not 0 <= self.threshold <= 1:
      raise ValueError(f'{self.threshold=} must be in [0, 1]: it is compared with a share of attention.')
    if self.budget is not None and self.budget < 1:
      raise ValueError(f'{self.budget=} must be a positive number of bytes.')
    if len(given := [n for n in ('threshold', 'n_full', 'budget') if getattr(self, n) is not None]) > 1:
      raise ValueError(f'{" and ".join(given)} each decide how many layers are lazy: pass one of them.')
    for name, known in (
      ('stage', ('decode', 'prefill')),
      ('growth', ('append', 'ring')),
      ('batch', ('all', 'mean', 'group')),
      ('layout', ('pooled', 'static')),
      ('keep', ('window', 'snapkv', 'h2o')),
      ('prefill', ('whole', 'layerwise')),
    ):
      if getattr(self, name) not in known:
        raise unknown(name, getattr(self, name), known)

    if self.quant is not None and self.growth == 'ring':
      raise ValueError("quant needs growth='append': a ring overwrites single tokens of groups quantised together.")
    if self.keep != 'window' and (self.stage, self.growth) != ('prefill', 'append'):
      raise ValueError(f"keep={self.keep!r} is decided by the prompt: it needs stage='prefill' and growth='append'.")
    if self.keep == 'snapkv' and self.n_observed >= self.kept:
      raise ValueError(f'n_observed={self.n_observed} must be less than the {self.kept} tokens kept.')
    if self.prefill == 'layerwise' and (self.stage, self.layout) != ('prefill', 'static'):
      raise ValueError("prefill='layerwise' cuts while it reads: it needs stage='prefill' and layout='static'.")

  @property
  def kept(self) -> int:
    """Number of tokens in a lazy layer right after it is cut."""
    return self.n_initial + self.n_recent

  def replace(self, **changes) -> 'LazyConfig':
    return dataclasses.replace(self, **changes)


# Settings of the authors' code, of kvpress and of version 2 of the paper. The first four cut half of the layers unless a
# threshold, n_full or budget is given.
PRESETS = {
  'authors-decode': LazyConfig(n_recent=1024),
  'authors-prefill': LazyConfig(n_recent=1024, stage='prefill', n_last=32, score_recent=512, include_self=False),
  # kvpress drops the last key before it counts 1024 recent ones, so it keeps one token fewer.
  'kvpress': LazyConfig(n_recent=1023, stage='prefill', score_recent=1024, include_self=False, batch='mean'),
  'lighttransfer': LazyConfig(n_recent=1020, stage='prefill'),
  # Baselines. `streaming` is StreamingLLM, except that the prompt is read with full attention and tokens keep their positions.
  'streaming': LazyConfig(n_full=0, stage='prefill', growth='ring'),
  'snapkv': LazyConfig(n_full=0, stage='prefill', keep='snapkv', n_initial=0, n_recent=768),
  'h2o': LazyConfig(n_full=0, stage='prefill', keep='h2o', n_initial=0, n_recent=1024),
  'kivi': LazyConfig(threshold=1.0, quant=KiviConfig()),
}

# Thresholds of the authors' code, for 1024 recent tokens and stage `decode`.
THRESHOLDS = {
  'llama-2-7b-chat': 0.65,
  'llama-3-8b-instruct': 0.9,
  'mistral-7b-instruct-v0.3': 0.8,
  'qwen2.5-3b-instruct': 0.85,
}


def preset(name: str, model: str | None = None, **changes) -> LazyConfig:
  """Returns a preset with `changes`; if `model` is given, with the threshold that the paper's authors chose for it.

  Raises:
    ValueError: there is no such preset or model; the nearest name is suggested.
  """
  if name not in PRESETS:
    raise unknown('preset', name, PRESETS)
  if model is not None:
    if model not in THRESHOLDS:
      raise unknown('model', model, THRESHOLDS)
    changes = {'threshold': THRESHOLDS[model], **changes}
    if model.startswith('qwen'):  # The authors' code never cuts the last layer of Qwen.
      changes = {'exempt_layers': (-1,), **changes}
  return PRESETS[name].replace(**changes)


def exempt(lazy: LazyConfig, model: ModelConfig) -> np.ndarray:
  """Returns [L] bool: the layers that are never lazy, which are `exempt_layers` and all layers with a sliding window.

  Raises:
    ValueError: an exempt layer does not exist.
  """
  L = model.num_layers
  if bad := [i for i in lazy.exempt_layers if not -L <= i < L]:
    raise ValueError(f'exempt_layers names layer {bad[0]}; the model has layers 0 to {L - 1}.')
  chosen = {i % L for i in lazy.exempt_layers}
  return np.array([i in chosen or model.window(i) is not None for i in range(L)])


def layer_bytes(model: ModelConfig, tokens: int, quant: KiviConfig | None = None) -> int:
  """Returns the bytes of the keys and values of `tokens` tokens in one layer."""
  exact = 4 if model.dtype == 'float32' else 2
  if quant is not None:
    return round(model.num_kv_heads * quant.bytes(tokens, model.head_dim, exact))
  return 2 * model.num_kv_heads * model.head_dim * tokens * exact


def cache_bytes(model: ModelConfig, length: int, lazy_layers: int, kept: int, quant: KiviConfig | None = None) -> int:
  """Returns the bytes of the keys and values of one row of `length` tokens, of which each lazy layer keeps at most `kept`."""
  whole, cut = layer_bytes(model, length, quant), layer_bytes(model, min(length, kept), quant)
  return (model.num_layers - lazy_layers) * whole + lazy_layers * cut


def compression_ratio(
  model: ModelConfig, length: int, lazy_layers: int, kept: int, quant: KiviConfig | None = None
) -> float:
  """Returns how many times smaller the cache of a row becomes; 1 - 1 / ratio is the share of bytes removed."""
  return cache_bytes(model, length, 0, kept) / cache_bytes(model, length, lazy_layers, kept, quant)


def select_lazy(ratios, lengths, lazy: LazyConfig, model: ModelConfig) -> np.ndarray:
  """Returns [B, L] bool: the lazy layers of each row.

  No layer is lazy in rows of at most `lazy.kept` tokens. With equal ratios the earlier layer stays full.

  Args:
    ratios: [B, L] lazy ratios in [0, 1].
    lengths: [B] number of tokens in each row's cache.

  Raises:
    ValueError: ratios that are not finite, more full layers than the model has, or a budget that lazy layers alone exceed.
  """
  ratios, lengths = np.asarray(ratios, np.float32), np.asarray(lengths)
  if (bad := np.argwhere(~np.isfinite(ratios))).size:
    row, layer = bad[0]
    raise ValueError(f'The lazy ratio of row {row}, layer {layer} is {ratios[row, layer]}: activations are not finite.')
  fixed = exempt(lazy, model)
  L = model.num_layers
  if lazy.batch == 'all':
    ratios = np.broadcast_to(ratios.min(axis=0), ratios.shape)
  elif lazy.batch == 'mean':
    ratios = np.broadcast_to(ratios.mean(axis=0), ratios.shape)
  longest = lengths if lazy.batch == 'group' else np.full_like(lengths, lengths.max())
  chosen = []
  for ratio, length in zip(ratios, longest):
    if lazy.threshold is not None:
      row = (ratio > lazy.threshold) & ~fixed
    else:
      n_full = full_layers(lazy, model, int(length))
      order = np.argsort(np.where(fixed, -1.0, ratio), kind='stable')  # exempt layers are the first to be full
      row = np.isin(np.arange(L), order[n_full:]) & ~fixed
    chosen.append(row & (length > lazy.kept))
  return np.array(chosen)


def full_layers(lazy: LazyConfig, model: ModelConfig, length: int) -> int:
  """Returns how many layers stay full by `budget` or `n_full`; without both, half of them.

  Raises ValueError if n_full is more than the model's layers, or if the budget is too small.
  """
  if lazy.n_full is not None and lazy.n_full > model.num_layers:
    raise ValueError(f'n_full={lazy.n_full} is more than the {model.num_layers} layers of the model.')
  if lazy.budget is not None:
    return full_layers_within(lazy.budget, model, length, lazy.kept, lazy.quant)
  return (model.num_layers + 1) // 2 if lazy.n_full is None else lazy.n_full


def full_layers_within(budget: int, model: ModelConfig, length: int, kept: int, quant: KiviConfig | None = None) -> int:
  """Returns how many layers can keep `length` tokens within the budget. Raises ValueError if the cache is too large even with all layers lazy."""
  L = model.num_layers
  for n_full in range(L, -1, -1):
    if cache_bytes(model, length, L - n_full, kept, quant) <= budget:
      return n_full
  least = cache_bytes(model, length, L, kept, quant)
  raise ValueError(
    f'budget={budget} bytes is less than the {least} that {L} lazy layers of {min(length, kept)} tokens take: '
    'raise it, or lower n_recent.'
  )
