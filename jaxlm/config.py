"""The shape of a model, as plain data: no JAX here, so that command lines can show their help at once."""

import dataclasses
import json
from typing import Any, Literal

from jaxlm import errors

Operation = Literal['softmax', 'sigmoid']
Activation = Literal['silu', 'gelu', 'gelu_tanh', 'relu']


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary positions and how they are stretched beyond the length a model was trained at."""

  theta: float = 10000.0
  """Base of the wavelengths."""
  fraction: float = 1.0
  """Part of each head that is rotated (GPT-NeoX: 0.25)."""
  scaling: Literal['none', 'linear', 'dynamic', 'llama3', 'yarn'] = 'none'
  """How positions beyond `original_length` are treated."""
  factor: float = 1.0
  """Stretch: the context grows by about this much."""
  original_length: int = 0
  """Context length before stretching (0: the model's max_length)."""
  low_freq_factor: float = 1.0
  """llama3: wavelengths longer than original_length / this are stretched fully."""
  high_freq_factor: float = 4.0
  """llama3: wavelengths shorter than original_length / this are left alone."""
  beta_fast: float = 32.0
  """yarn: dimensions that turn more often than this over original_length are left alone."""
  beta_slow: float = 1.0
  """yarn: dimensions that turn less often than this are stretched fully."""
  attention_factor: float | None = None
  """yarn: multiplies cos and sin (none: 0.1 ln(factor) + 1)."""
  truncate: bool = True
  """yarn: round the ramp's two ends to whole dimensions."""

  def __post_init__(self):
    if self.theta <= 0 or self.factor <= 0:
      raise ValueError(f'RoPE needs theta > 0 and factor > 0, got {self.theta=} and {self.factor=}.')
    if not 0 < self.fraction <= 1:
      raise ValueError(f'{self.fraction=}: the rotated part of a head is in (0, 1].')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape of a decoder-only transformer."""

  vocab_size: int = 32000
  """Number of token ids. Trainers set it from the tokenizer."""
  num_layers: int = 12
  model_dim: int = 768
  """Width of the residual stream."""
  num_heads: int = 12
  """Query heads."""
  num_kv_heads: int = 12
  """Key/value heads: num_heads is MHA, fewer is GQA, 1 is MQA."""
  head_dim: int = 64
  mlp_dim: int = 2048
  """Hidden width of the MLP."""
  max_length: int = 1024
  """Longest sequence in tokens."""
  norm: Literal['rmsnorm', 'layernorm'] = 'rmsnorm'
  norm_eps: float = 1e-5
  activation: Activation = 'silu'
  gated_mlp: bool = True
  """down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))."""
  parallel_residual: bool = False
  """Attention and MLP read the same residual stream and are added together (GPT-NeoX)."""
  position: Literal['rope', 'learned', 'none'] = 'rope'
  rope: RopeConfig = RopeConfig()
  attention: Operation = 'softmax'
  """How attention logits become weights."""
  qk_norm: bool = False
  """RMSNorm on each query and key head before positions (Qwen3)."""
  qkv_bias: bool = False
  out_bias: bool = False
  """Bias of the attention output projection."""
  mlp_bias: bool = False
  tied_embeddings: bool = False
  """The output layer is the transposed embedding."""
  windows: tuple[int, ...] = ()
  """Sliding window of each layer in tokens, itself included (0: unlimited); a shorter tuple repeats over the layers."""
  attention_softcap: float | None = None
  """Attention logits become cap * tanh(logits / cap)."""
  logit_softcap: float | None = None
  """Output logits become cap * tanh(logits / cap)."""
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'bfloat16'
  """Computation dtype; parameters and attention logits stay float32 in training."""
  remat: Literal['none', 'dots', 'full'] = 'none'
  """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""

  def __post_init__(self):
    for name in (
      'vocab_size',
      'num_layers',
      'model_dim',
      'num_heads',
      'num_kv_heads',
      'head_dim',
      'mlp_dim',
      'max_length',
    ):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f'{self.num_heads=} is not a multiple of {self.num_kv_heads=}.')
    if self.position == 'rope' and self.rotated_dim % 2:
      raise ValueError(f'RoPE rotates pairs: {self.head_dim=} x {self.rope.fraction=} = {self.rotated_dim} is odd.')
    if any(w < 0 for w in self.windows) or len(self.windows) > self.num_layers:
      raise ValueError(f'{self.windows=}: at most {self.num_layers} windows, each 0 (unlimited) or a number of tokens.')
    for name in ('attention_softcap', 'logit_softcap'):
      if getattr(self, name) is not None and getattr(self, name) <= 0:
        raise ValueError(f'{name}={getattr(self, name)} must be positive, or None for no cap.')

  @property
  def rotated_dim(self) -> int:
    return int(self.head_dim * self.rope.fraction)

  def window(self, layer: int) -> int | None:
    """Sliding window of `layer` in tokens, or None."""
    return (self.windows[layer % len(self.windows)] or None) if self.windows else None

  def replace(self, **changes) -> 'ModelConfig':
    return dataclasses.replace(self, **changes)


def to_dict(config: Any) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config)))


def model_config(fields: dict[str, Any]) -> ModelConfig:
  """Returns the ModelConfig that `to_dict` wrote. Raises ValueError for a field this version does not know."""
  fields = dict(fields)
  for name in fields:
    if name not in (known := {f.name for f in dataclasses.fields(ModelConfig)}):
      raise errors.unknown('model config field', name, known)
  if 'rope' in fields:
    fields['rope'] = RopeConfig(**fields['rope'])
  if 'windows' in fields:
    fields['windows'] = tuple(fields['windows'])
  return ModelConfig(**fields)
