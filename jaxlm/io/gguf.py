"""Reads GGUF files, the format of llama.cpp: Llama (with Mistral), Qwen2 and Qwen3, Gemma 2 and 3, plain or quantised.

They differ from Hugging Face checkpoints in three ways: the rows of q and k of Llama models are permuted so that
RoPE rotates neighbours (2i, 2i + 1) instead of halves (i, i + H/2), shapes are written fastest axis first, and Llama
3's RoPE scaling is a tensor of divisors, one per frequency.
"""

from collections.abc import Mapping
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import errors
from jaxlm.config import ModelConfig, RopeConfig
from jaxlm.errors import CheckpointError
from jaxlm.io import FROM_FILES, gguf_gemma, weights
from jaxlm.io.families import parameter_paths
from jaxlm.io.fields import MOST_LAYERS, Fields
from jaxlm.io.gguf_header import Tensor, read_header
from jaxlm.io.rope_fields import stretched_length
from jaxlm.io.weights import Entry

ARCHITECTURES = ('llama', 'qwen2', 'qwen3', *gguf_gemma.ARCHITECTURES)
# Values of Llama 3.1 and 3.2. A GGUF file does not hold them, only the divisors that convert_hf_to_gguf computed from them.
_LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
_ROPE_DIVISORS = 'rope_freqs.weight'

_NAMES = {
  'embed/embedding': ('token_embd.weight', 'V,D'),
  'final_norm/scale': ('output_norm.weight', 'D'),
  'head': ('output.weight', 'V,D'),
  'attention_norm/scale': ('attn_norm.weight', 'D'),
  'attention/q/kernel': ('attn_q.weight', 'NH,D'),
  'attention/k/kernel': ('attn_k.weight', 'KH,D'),
  'attention/v/kernel': ('attn_v.weight', 'KH,D'),
  'attention/q/bias': ('attn_q.bias', 'NH'),
  'attention/k/bias': ('attn_k.bias', 'KH'),
  'attention/v/bias': ('attn_v.bias', 'KH'),
  'attention/o/kernel': ('attn_output.weight', 'D,NH'),
  'attention/o/bias': ('attn_output.bias', 'D'),
  'attention/q_norm/scale': ('attn_q_norm.weight', 'H'),
  'attention/k_norm/scale': ('attn_k_norm.weight', 'H'),
  'mlp_norm/scale': ('ffn_norm.weight', 'D'),
  'mlp/gate/kernel': ('ffn_gate.weight', 'F,D'),
  'mlp/up/kernel': ('ffn_up.weight', 'F,D'),
  'mlp/down/kernel': ('ffn_down.weight', 'D,F'),
}
_GEMMA_NAMES = _NAMES | gguf_gemma.NAMES


def load(path: Path, dtype: str, mesh: Any = None, tokenizer: Any = FROM_FILES) -> tuple[ModelConfig, Any, Any]:
  """Returns (config, params, tokenizer or None). Raises CheckpointError if the file cannot be read or its parts do not fit."""
  metadata, tensors = read_header(path)
  config = Fields(metadata, path).config(lambda fields: read_config(fields, tensors))
  tokenizer = weights.own_tokenizer(lambda: _read_tokenizer(path, metadata), tokenizer, config, path)
  tensors.pop(_ROPE_DIVISORS, None)
  params = weights.load(config, entries(config, metadata['general.architecture']), tensors, dtype, mesh)
  return config.replace(dtype=dtype), params, tokenizer


def _read_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Any:
  from jaxlm.data import gguf_vocabulary

  if metadata.get('tokenizer.ggml.model', 'none') in ('none', 'no_vocab'):
    return None
  try:
    return gguf_vocabulary.from_gguf(metadata)
  except ValueError as e:
    raise CheckpointError(f'{path}: the tokenizer in this file cannot be used: {str(e).rstrip(".")}.') from e


def read_config(f: Fields, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
  """Returns the arguments of ModelConfig. Raises CheckpointError that names a field whose value is not supported."""
  arch = f['general.architecture']
  if not isinstance(arch, str) or arch not in ARCHITECTURES:
    raise errors.unknown(f'GGUF architecture in {f.source}:', arch, ARCHITECTURES, CheckpointError)
  if f.whole('split.count', 1, least=0) > 1:
    raise f.refuse('split.count', f.get('split.count'), 'merge the parts first (llama-gguf-split --merge)')
  if f.whole(f'{arch}.expert_count', 0, least=0):
    raise f.refuse(f'{arch}.expert_count', f.get(f'{arch}.expert_count'), 'mixtures of experts are not computed')
  for name in ('attention.head_count', 'attention.head_count_kv', 'feed_forward_length'):
    if isinstance(f.get(f'{arch}.{name}'), list):
      raise f.refuse(f'{arch}.{name}', f.get(f'{arch}.{name}'), 'layers of different shapes are not computed')
  width, heads = f.whole(f'{arch}.embedding_length'), f.whole(f'{arch}.attention.head_count')
  head_dim = f.whole(f'{arch}.attention.key_length', None) or f.head_dim(
    f'{arch}.embedding_length', f'{arch}.attention.head_count'
  )
  f.only(f'{arch}.attention.value_length', head_dim, 'keys and values have one width')
  f.only(f'{arch}.rope.dimension_count', head_dim, 'these models rotate whole heads')
  if 'token_embd.weight' not in tensors:
    raise CheckpointError(f"{f.source}: parameter embed/embedding is missing: there is no tensor 'token_embd.weight'.")
  max_length, window = f.whole(f'{arch}.context_length'), f.whole(f'{arch}.attention.sliding_window', 0, least=0)
  rope = _read_rope(f, arch, head_dim, max_length, tensors.get(_ROPE_DIVISORS))
  read = dict(
    vocab_size=tensors['token_embd.weight'].shape[0],
    num_layers=f.whole(f'{arch}.block_count', most=MOST_LAYERS),
    model_dim=width,
    num_heads=heads,
    num_kv_heads=f.whole(f'{arch}.attention.head_count_kv', heads),
    head_dim=head_dim,
    mlp_dim=f.whole(f'{arch}.feed_forward_length'),
    max_length=stretched_length(rope, max_length),
    norm_eps=_decimal(f.number(f'{arch}.attention.layer_norm_rms_epsilon')),
    rope=rope,
    qk_norm=arch == 'qwen3',
    qkv_bias='blk.0.attn_q.bias' in tensors,
    out_bias='blk.0.attn_output.bias' in tensors,
    tied_embeddings='output.weight' not in tensors,
    windows=(window,) if window else (),
  )
  return read | gguf_gemma.read_gemma(f, arch, read, _decimal, max_length) if arch in gguf_gemma.ARCHITECTURES else read


def _decimal(x: float) -> float:
  """Returns the number rounded to 7 digits: metadata is float32, in which 1e-5 is 9.99999974e-06."""
  return float(f'{x:.7g}')


def _read_rope(f: Fields, arch: str, head_dim: int, max_length: int, divisors: Tensor | None) -> RopeConfig:
  theta = _decimal(f.number(f'{arch}.rope.freq_base', 10000.0))
  key = f'{arch}.rope.scaling'
  scaling = f.get(f'{key}.type', 'linear' if f.get(f'{arch}.rope.scale_linear') else 'none')
  if not isinstance(scaling, str) or scaling not in ('none', 'linear', 'yarn'):
    raise f.refuse(f'{key}.type', scaling, 'RoPE scalings are none, linear, yarn')
  if divisors is not None:
    if scaling != 'none':
      raise f.refuse(f'{key}.type', scaling, f'there is a {_ROPE_DIVISORS} as well')
    return _llama3_rope(f, theta, head_dim, divisors.rows(0, divisors.shape[0]))
  if scaling == 'none':
    return RopeConfig(theta=theta)
  factor = _decimal(f.number(f'{key}.factor', f.number(f'{arch}.rope.scale_linear', 1.0), most=1e6))
  if scaling == 'linear':
    return RopeConfig(theta=theta, scaling='linear', factor=factor)
  f.only(f'{key}.yarn_log_multiplier', 0.0, 'the scale of attention follows from the factor')
  return RopeConfig(
    theta=theta,
    scaling='yarn',
    factor=factor,
    original_length=f.whole(f'{key}.original_context_length', max_length),
    beta_fast=f.number(f'{key}.yarn_beta_fast', 32.0),
    beta_slow=f.number(f'{key}.yarn_beta_slow', 1.0),
    attention_factor=f.number(f'{key}.attn_factor', 1.0) * (0.1 * math.log(max(factor, 1.0)) + 1.0),
  )


def _llama3_rope(f: Fields, theta: float, head_dim: int, divisors: np.ndarray) -> RopeConfig:
  """Returns the Llama 3 scaling that gives a tensor of divisors. Raises CheckpointError if none gives it."""
  from jaxlm.attention.positions import rope_frequencies

  if np.all(divisors == 1):
    return RopeConfig(theta=theta)
  rope = RopeConfig(theta=theta, scaling='llama3', factor=float(divisors.max()), **_LLAMA3)
  frequencies = [
    np.asarray(rope_frequencies(ModelConfig(head_dim=head_dim, rope=r), 0)[0]) for r in (RopeConfig(theta=theta), rope)
  ]
  if divisors.shape != frequencies[0].shape or not np.allclose(frequencies[0] / frequencies[1], divisors, rtol=1e-3):
    raise f.refuse(_ROPE_DIVISORS, divisors.tolist(), f'they are not those of Llama 3 ({_LLAMA3})')
  return rope


def entries(config: ModelConfig, arch: str) -> list[Entry]:
  """Returns the GGUF tensor of every parameter of a config."""
  out = []
  names = _GEMMA_NAMES if arch in gguf_gemma.ARCHITECTURES else _NAMES
  shift = gguf_gemma.NORM_SHIFT if arch in gguf_gemma.ARCHITECTURES else 0.0
  for path in parameter_paths(config):
    layer, _, rest = path.partition('/')
    in_layer = layer.startswith('layer_')
    name, axes = names[rest if in_layer else path]
    if arch == 'llama' and rest.split('/')[-2:-1] in (['q'], ['k']):
      axes = axes.replace('H', 'ht')  # RoPE pairs are neighbours (2i, 2i + 1) in the file
    name = f'blk.{layer.removeprefix("layer_")}.{name}' if in_layer else name
    out.append(Entry(path, name, axes, shift=shift if path.endswith('norm/scale') else 0.0))
  return out
