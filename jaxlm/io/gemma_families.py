"""Gemma 2 and Gemma 3 as Hugging Face writes them, Gemma 3 without its image encoder.

Fields that a config.json leaves out have the defaults of transformers' config classes: many files of Gemma 3 rely on them.
"""

from collections.abc import Mapping
import re
from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.io.fields import MOST_LAYERS, Fields, activation_name, repeating
from jaxlm.io.rms_families import llama_table, read_windows, write_shape, write_windows
from jaxlm.io.rope_fields import read_rope, write_rope

_MULTIMODAL = 'gemma3'
_TEXT = 'gemma3_text'


def gemma_table() -> dict[str, tuple]:
  norms = {
    'attention_out_norm': 'post_attention_layernorm',
    'mlp_norm': 'pre_feedforward_layernorm',
    'mlp_out_norm': 'post_feedforward_layernorm',
  }
  table = {
    path: entry for path, entry in llama_table().items() if not path.endswith(('up/bias', 'gate/bias', 'down/bias'))
  }
  return table | {f'layer_*/{ours}/scale': (f'layers.*.{theirs}.weight', 'D') for ours, theirs in norms.items()}


def _read_gemma(f: Fields, vocab_size: int, max_length: int) -> dict[str, Any]:
  """What both families share, with the defaults of their config classes."""
  bias = f.flag('attention_bias', False)
  width, heads = f.whole('hidden_size', 2304), f.whole('num_attention_heads', 8)
  if width % heads:  # transformers insists on it, although head_dim is a field of its own.
    raise f.refuse('num_attention_heads', heads, f'hidden_size={width} is not a multiple of it')
  return dict(
    vocab_size=f.whole('vocab_size', vocab_size),
    num_layers=f.whole('num_hidden_layers', 26, most=MOST_LAYERS),
    model_dim=width,
    num_heads=heads,
    num_kv_heads=f.whole('num_key_value_heads', 4),
    head_dim=f.whole('head_dim', 256),
    mlp_dim=f.whole('intermediate_size', 9216),
    max_length=f.whole('max_position_embeddings', max_length),  # The files write the stretched length.
    norm='rmsnorm',
    norm_eps=f.number('rms_norm_eps', 1e-6),
    norm_plus_one=True,
    norm_placement='sandwich',
    activation=f.activation('hidden_activation', 'gelu_pytorch_tanh'),
    gated_mlp=True,
    qkv_bias=bias,
    out_bias=bias,
    query_scale_dim=f.whole('query_pre_attn_scalar', 256),
    tied_embeddings=f.flag('tie_word_embeddings', True),
    scaled_embeddings=True,
  )


def _write_gemma(c: ModelConfig) -> dict[str, Any]:
  return write_shape(c) | dict(
    max_position_embeddings=c.max_length,
    hidden_activation='gelu_pytorch_tanh' if c.activation == 'gelu_tanh' else activation_name(c),
    attention_bias=c.qkv_bias,
    query_pre_attn_scalar=c.query_scale_dim or c.head_dim,
    final_logit_softcapping=c.logit_softcap,
  )


def _write_windows(c: ModelConfig) -> dict[str, Any]:
  windows = write_windows(c)
  return windows | dict(sliding_window=windows['sliding_window'] or 4096)  # transformers needs one even for no layer.


def read_gemma2(f: Fields) -> dict[str, Any]:
  shared = _read_gemma(f, 256_000, 8192)
  if f.flag('use_bidirectional_attention', False):
    raise f.refuse('use_bidirectional_attention', True, 'Gemma 2 models are causal')
  default = ['full_attention' if i % 2 else 'sliding_attention' for i in range(shared['num_layers'])]
  cap = lambda name, absent: f.number(name, None) if name in f.fields else absent
  return shared | dict(
    rope=read_rope(f, shared['max_length']),
    windows=repeating(read_windows(f, shared['num_layers'], f.window(absent=4096), default)),
    attention_softcap=cap('attn_logit_softcapping', 50.0),
    logit_softcap=cap('final_logit_softcapping', 30.0),
  )


def write_gemma2(c: ModelConfig) -> dict[str, Any]:
  return _write_gemma(c) | dict(attn_logit_softcapping=c.attention_softcap, **write_rope(c), **_write_windows(c))


def read_gemma3(f: Fields) -> dict[str, Any]:
  shared = _read_gemma(f, 262_208, 131_072)
  f.only('attn_logit_softcapping', None, 'transformers does not compute it for Gemma 3')
  layers = shared['num_layers']
  pattern = f.whole('sliding_window_pattern', f.whole('_sliding_window_pattern', 6))
  default = ['sliding_attention' if (i + 1) % pattern else 'full_attention' for i in range(layers)]
  both_sides = f.flag('use_bidirectional_attention', False)
  window = f.window(absent=4096)
  if both_sides and window:
    window = window // 2 + 1  # The file counts both sides together; `windows` counts one side and the token itself.
  windows = repeating(read_windows(f, layers, window, default))
  rope, local_theta = _read_ropes(f, shared['max_length'])
  return shared | dict(
    causal=not both_sides,
    qk_norm=True,
    rope=rope,
    local_rope_theta=local_theta if windows else None,
    windows=windows,
    logit_softcap=f.number('final_logit_softcapping', None),
  )


def write_gemma3(c: ModelConfig) -> dict[str, Any]:
  written, windows = write_rope(c), _write_windows(c)
  if not c.causal:
    windows['sliding_window'] = (windows['sliding_window'] - 1) * 2
  local = c.local_rope_theta or c.rope.theta
  written['rope_local_base_freq'] = local
  written['rope_parameters'] = {
    'full_attention': written['rope_parameters'],
    'sliding_attention': {'rope_type': 'default', 'rope_theta': local},
  }
  return _write_gemma(c) | written | windows | dict(use_bidirectional_attention=not c.causal)


def _read_ropes(f: Fields, max_length: int):
  """Returns (RoPE of the full layers, base of those with a window), in the layout of transformers 4 or 5."""
  by_type = f.get('rope_parameters', {})
  if not isinstance(by_type, dict) or not all(isinstance(rope, dict | None) for rope in by_type.values()):
    raise f.refuse('rope_parameters', by_type, 'expected one object for each kind of layers')
  full, local = (dict(by_type.get(kind) or {}) for kind in ('full_attention', 'sliding_attention'))
  if local.get('rope_type', 'default') != 'default':
    raise f.refuse('rope_parameters["sliding_attention"]', local, 'layers with a window are not stretched')
  full.setdefault('rope_theta', f.number('rope_theta', 1e6))
  theta = local.get('rope_theta')
  theta = f.number('rope_local_base_freq', 1e4) if theta is None else f.checked_number('rope_theta', theta)
  fields = dict(f.fields) | {'rope_parameters': full, 'rope_theta': full['rope_theta']}
  return read_rope(Fields(fields, f.source), max_length), theta


def is_multimodal(f: Fields) -> bool:
  """Returns whether a config.json is of Gemma 3 with an image encoder: the text model is nested inside."""
  return f.get('model_type') == _MULTIMODAL


def text_fields(f: Fields) -> Fields:
  """Returns the fields of the text model inside a config.json with an image encoder."""
  inside = f['text_config']
  if not isinstance(inside, dict):
    raise f.refuse('text_config', inside, 'expected an object')
  shared = {name: f.fields[name] for name in ('quantization_config', 'tie_word_embeddings') if name in f.fields}
  return Fields({**shared, **inside, 'model_type': _TEXT}, f.source)


def text_tensors(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Returns (the text model's tensors by its own names, the names of the others): of transformers 4 and 5."""
  found, others = {}, []
  for name, tensor in tensors.items():
    if match := re.match(r'(?:model\.language_model\.|language_model\.model\.)(.*)', name):
      found[f'model.{match[1]}'] = tensor
    elif name in ('lm_head.weight', 'language_model.lm_head.weight'):
      found['lm_head.weight'] = tensor
    else:
      others.append(name)
  return found, others
