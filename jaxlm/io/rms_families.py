"""Hugging Face configs and tensor names of Llama, Mistral, Qwen2 and Qwen3: RMSNorm, RoPE, a gated MLP."""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.io.fields import MOST_LAYERS, Fields, activation_name
from jaxlm.io.rope_fields import read_length, read_rope, write_length, write_rope


def llama_table() -> dict[str, tuple]:
  table = {
    'embed/embedding': ('embed_tokens.weight', 'V,D'),
    'final_norm/scale': ('norm.weight', 'D'),
    'layer_*/attention_norm/scale': ('layers.*.input_layernorm.weight', 'D'),
    'layer_*/attention/o/kernel': ('layers.*.self_attn.o_proj.weight', 'D,NH'),
    'layer_*/attention/o/bias': ('layers.*.self_attn.o_proj.bias', 'D'),
    'layer_*/attention/q_norm/scale': ('layers.*.self_attn.q_norm.weight', 'H'),
    'layer_*/attention/k_norm/scale': ('layers.*.self_attn.k_norm.weight', 'H'),
    'layer_*/mlp_norm/scale': ('layers.*.post_attention_layernorm.weight', 'D'),
    'layer_*/mlp/down/kernel': ('layers.*.mlp.down_proj.weight', 'D,F'),
    'layer_*/mlp/down/bias': ('layers.*.mlp.down_proj.bias', 'D'),
  }
  for x, heads in (('q', 'NH'), ('k', 'KH'), ('v', 'KH')):
    table[f'layer_*/attention/{x}/kernel'] = (f'layers.*.self_attn.{x}_proj.weight', f'{heads},D')
    table[f'layer_*/attention/{x}/bias'] = (f'layers.*.self_attn.{x}_proj.bias', heads)
  for x in ('gate', 'up'):
    table[f'layer_*/mlp/{x}/kernel'] = (f'layers.*.mlp.{x}_proj.weight', 'F,D')
    table[f'layer_*/mlp/{x}/bias'] = (f'layers.*.mlp.{x}_proj.bias', 'F')
  return table


def _read_rms(f: Fields, head_dim: int | None = None) -> dict[str, Any]:
  """Returns the fields that the four families share. `head_dim`: a family's default if the field is absent."""
  heads, max_length = f.whole('num_attention_heads'), f.whole('max_position_embeddings')
  head_dim = f.whole('head_dim', head_dim) or f.head_dim('hidden_size', 'num_attention_heads')
  rope = read_rope(f, max_length)
  return dict(
    vocab_size=f.whole('vocab_size'),
    num_layers=f.whole('num_hidden_layers', most=MOST_LAYERS),
    model_dim=f.whole('hidden_size'),
    num_heads=heads,
    num_kv_heads=f.whole('num_key_value_heads', heads),
    head_dim=head_dim,
    mlp_dim=f.whole('intermediate_size'),
    max_length=read_length(f, rope, max_length),
    norm='rmsnorm',
    norm_eps=f.number('rms_norm_eps', 1e-6),
    activation=f.activation('hidden_act', 'silu'),
    gated_mlp=True,
    rope=rope,
    tied_embeddings=f.flag('tie_word_embeddings', False),
  )


def write_shape(c: ModelConfig) -> dict[str, Any]:
  """Returns the fields that all families with RMSNorm have under the same names."""
  return dict(
    vocab_size=c.vocab_size,
    num_hidden_layers=c.num_layers,
    hidden_size=c.model_dim,
    num_attention_heads=c.num_heads,
    num_key_value_heads=c.num_kv_heads,
    head_dim=c.head_dim,
    intermediate_size=c.mlp_dim,
    rms_norm_eps=c.norm_eps,
    tie_word_embeddings=c.tied_embeddings,
  )


def _write_rms(c: ModelConfig) -> dict[str, Any]:
  return write_shape(c) | dict(
    **write_length(c),
    hidden_act=activation_name(c),
    **write_rope(c),
  )


def read_llama(f: Fields) -> dict[str, Any]:
  f.head_dim('hidden_size', 'num_attention_heads')  # transformers requires this for Llama only
  bias = f.flag('attention_bias', False)
  return _read_rms(f) | dict(qkv_bias=bias, out_bias=bias, mlp_bias=f.flag('mlp_bias', False))


def write_llama(c: ModelConfig) -> dict[str, Any]:
  return _write_rms(c) | dict(attention_bias=c.qkv_bias, mlp_bias=c.mlp_bias)


def read_mistral(f: Fields) -> dict[str, Any]:
  # transformers ignores layer_types of Mistral and gives every layer the window; models with mixed layers are other families.
  if len(set(layer_types(f, []))) > 1:
    raise f.refuse('layer_types', f.get('layer_types'), 'Mistral models have one kind of layer')
  window = f.window(absent=4096)
  return _read_rms(f) | dict(windows=(window,) if window else ())


def layer_types(f: Fields, default: list[str]) -> list[str]:
  types = f.get('layer_types', default)
  if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
    raise f.refuse('layer_types', types, 'expected a list of strings, or null')
  return types


def write_mistral(c: ModelConfig) -> dict[str, Any]:
  return _write_rms(c) | dict(sliding_window=c.window(0))


def _read_qwen_windows(f: Fields) -> tuple[int, ...]:
  layers = f.whole('num_hidden_layers', most=MOST_LAYERS)
  window = f.window(absent=4096) if f.flag('use_sliding_window', False) else 0
  first = f.whole('max_window_layers', 28, least=0)
  default = ['sliding_attention' if window and i >= first else 'full_attention' for i in range(layers)]
  return read_windows(f, layers, window, default)


def read_windows(f: Fields, layers: int, window: int, default: list[str]) -> tuple[int, ...]:
  """Returns the windows of layers of two kinds, none if all are full. `default`: their kinds without layer_types."""
  types = layer_types(f, default)
  for kind in types:
    if kind not in ('sliding_attention', 'full_attention') or (kind == 'sliding_attention' and not window):
      raise f.refuse('layer_types', kind, f'with sliding_window={window}, layers are of the kinds {set(default)}')
  if len(types) != layers:
    raise f.refuse('layer_types', types, f'num_hidden_layers={layers}')
  return tuple(window if kind == 'sliding_attention' else 0 for kind in types) if 'sliding_attention' in types else ()


def write_windows(c: ModelConfig) -> dict[str, Any]:
  windows = [c.window(i) or 0 for i in range(c.num_layers)]
  return dict(
    sliding_window=max(windows) or None,
    layer_types=['sliding_attention' if w else 'full_attention' for w in windows],
  )


def _write_qwen_windows(c: ModelConfig) -> dict[str, Any]:
  windows = [c.window(i) for i in range(c.num_layers)]
  return dict(
    use_sliding_window=any(windows),
    max_window_layers=next((i for i, w in enumerate(windows) if w), c.num_layers),
    **write_windows(c),
  )


def read_qwen2(f: Fields) -> dict[str, Any]:
  return _read_rms(f) | dict(qkv_bias=True, windows=_read_qwen_windows(f))


def write_qwen2(c: ModelConfig) -> dict[str, Any]:
  return _write_rms(c) | _write_qwen_windows(c)


def read_qwen3(f: Fields) -> dict[str, Any]:
  bias = f.flag('attention_bias', False)
  return _read_rms(f, head_dim=128) | dict(qk_norm=True, qkv_bias=bias, out_bias=bias, windows=_read_qwen_windows(f))


def write_qwen3(c: ModelConfig) -> dict[str, Any]:
  return write_qwen2(c) | dict(attention_bias=c.qkv_bias)
