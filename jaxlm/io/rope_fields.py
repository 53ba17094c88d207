"""Reads and writes the RoPE fields of Hugging Face configs.

transformers 5 stores all of them in `rope_parameters`; 4.x wrote `rope_theta`, `rope_scaling` and, for GPT-NeoX,
`rotary_emb_base` and `rotary_pct`. Both forms are read and written, so that both versions can read the files.
"""

import dataclasses
import math
from typing import Any

from jaxlm.config import ModelConfig, RopeConfig
from jaxlm.io.fields import LARGEST, Fields

_USED = {  # scaling -> the fields of RopeConfig that it uses, besides theta and fraction
  'none': (),
  'linear': ('factor',),
  'dynamic': ('factor', 'original_length'),
  'llama3': ('factor', 'original_length', 'low_freq_factor', 'high_freq_factor'),
  'yarn': ('factor', 'original_length', 'beta_fast', 'beta_slow', 'attention_factor', 'truncate'),
}

_OWN_LENGTH = 'context_length'  # written only if max_length does not follow from other fields; transformers ignores it


def read_rope(f: Fields, max_length: int, fraction: float | None = None) -> RopeConfig:
  """Returns the RopeConfig. `fraction`: a family's default fraction of rotated dimensions; None: it always rotates all.

  Raises CheckpointError that names a scaling that is not supported.
  """
  where = 'rope_scaling' if f.get('rope_scaling') else 'rope_parameters'
  rope = f.get(where, {})
  if not isinstance(rope, dict):
    raise f.refuse(where, rope, 'expected an object, or null')
  if any(isinstance(value, dict) for value in rope.values()):
    raise f.refuse(where, rope, 'all layers share one kind of positions')
  get = lambda name, *older, default=None: next(
    (v for v in (rope.get(name), f.get(name), *map(f.get, older)) if v is not None), default
  )
  theta = f.checked_number('rope_theta', get('rope_theta', 'rotary_emb_base', default=10000.0))
  part = get('partial_rotary_factor', 'rotary_pct', default=fraction or 1.0)
  part = f.checked_number('partial_rotary_factor', part, most=1.0)
  if fraction is None and part != 1.0:
    raise f.refuse('partial_rotary_factor', part, 'this family rotates whole heads')
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  scaling = 'none' if kind == 'default' else kind
  if not isinstance(scaling, str) or scaling not in _USED:
    known = ', '.join(('default', *list(_USED)[1:]))
    raise f.refuse(f'{where}["rope_type"]', kind, f'RoPE types are {known}')
  values: dict[str, Any] = dict(theta=theta, fraction=part, scaling=scaling)
  if scaling == 'none':
    return RopeConfig(**values)
  inside = lambda name: Fields({f'{where}["{name}"]': rope.get(name)}, f.source)
  name = 'original_max_position_embeddings'
  original = inside(name).whole(f'{where}["{name}"]', None) or f.whole(name, max_length)
  factor = rope.get('factor')
  if factor is None and scaling != 'yarn':
    raise f.refuse(where, rope, f'{scaling} scaling needs a factor')
  if factor is not None:
    factor = f.checked_number(f'{where}["factor"]', factor, most=1e6)
  values['factor'] = factor = max_length / original if factor is None else factor
  if scaling == 'dynamic':  # transformers uses only max_position_embeddings for it
    original = max_length
  if scaling != 'linear':
    values['original_length'] = original
  for name in ('low_freq_factor', 'high_freq_factor', 'beta_fast', 'beta_slow', 'attention_factor'):
    if name in _USED[scaling] and rope.get(name) is not None:
      values[name] = f.checked_number(f'{where}["{name}"]', rope[name])
  if scaling == 'yarn':
    values['truncate'] = inside('truncate').flag(f'{where}["truncate"]', True)
    names = ('mscale', 'mscale_all_dim')
    scale, all_dims = (inside(n).number(f'{where}["{n}"]', None, above=-1e-9) for n in names)
    if rope.get('attention_factor') is None and scale and all_dims and factor > 1:
      values['attention_factor'] = (0.1 * scale * math.log(factor) + 1) / (0.1 * all_dims * math.log(factor) + 1)
  return RopeConfig(**values)


def stretched_length(rope: RopeConfig, length: int) -> int:
  """Returns the context length of a model after RoPE scaling, given the length in its file.

  Some files give the length before scaling, others the length after it. The file's length is taken as the length before
  scaling if it is not longer than the scaling's original length.
  """
  original = rope.original_length or length
  if rope.scaling == 'none' or length > original:
    return length
  return max(length, min(round(original * rope.factor), LARGEST))


def read_length(f: Fields, rope: RopeConfig, length: int) -> int:
  """Returns max_length: the field that jaxlm writes if it exists, else max_position_embeddings after scaling."""
  return f.whole(_OWN_LENGTH, stretched_length(rope, length))


def write_length(config: ModelConfig) -> dict[str, Any]:
  """Returns the fields of config.json for the context length."""
  rope = rope_meaning(config) if config.position == 'rope' else RopeConfig()
  length = rope.original_length if rope.scaling == 'dynamic' else config.max_length
  own = {} if stretched_length(rope, length) == config.max_length else {_OWN_LENGTH: config.max_length}
  return {'max_position_embeddings': length, **own}


def rope_meaning(config: ModelConfig) -> RopeConfig:
  """Returns the RopeConfig of a config, with fields that its scaling does not use set to their defaults."""
  rope, used = config.rope, _USED[config.rope.scaling]
  defaults = RopeConfig(theta=rope.theta, fraction=rope.fraction, scaling=rope.scaling)
  rope = dataclasses.replace(defaults, **{name: getattr(rope, name) for name in used})
  if 'original_length' in used:
    rope = dataclasses.replace(rope, original_length=rope.original_length or config.max_length)
  if 'attention_factor' in used and rope.attention_factor is None:
    rope = dataclasses.replace(rope, attention_factor=0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0)
  return rope


def write_rope(config: ModelConfig, partial: bool = False) -> dict[str, Any]:
  """Returns the RoPE fields of config.json. `partial`: the family can rotate a part of each head (GPT-NeoX)."""
  rope = rope_meaning(config)
  names = {'original_length': 'original_max_position_embeddings'}
  scaling = {names.get(name, name): getattr(rope, name) for name in _USED[rope.scaling]}
  if rope.scaling == 'dynamic':
    del scaling['original_max_position_embeddings']
  if scaling:
    scaling['rope_type'] = rope.scaling
  fields: dict[str, Any] = {
    'rope_theta': rope.theta,
    'rope_scaling': scaling or None,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': rope.theta, **scaling},
  }
  if partial:
    fields |= {'rotary_emb_base': rope.theta, 'rotary_pct': rope.fraction}
    fields['rope_parameters']['partial_rotary_factor'] = rope.fraction
  return fields
