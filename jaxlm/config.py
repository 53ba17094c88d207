"""The shape of a model, as plain data: no JAX here, so that command lines can show their help at once."""

import dataclasses
import json
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxlm import errors

Operation = Literal[
  'softmax', 'sigmoid', 'sigmoid_norm', 'sigmoid_len', 'sigmoid_sqrtlen', 'elu1', 'elu1_norm', 'identity', 'identity_norm',
  'kernel_elu1', 'kernel_elu1_norm', 'mlp', 'mlp_norm',
]  # fmt: skip
POWERED = ('softmax', 'sigmoid_norm', 'elu1_norm')
Position = Literal['rope', 'learned', 'sinusoidal', 'alibi', 'relative_t5', 'relative_paper', 'none']
Activation = Literal['silu', 'gelu', 'gelu_tanh', 'relu']
Direction = Literal['forward', 'reverse', 'both']
DirectionSignal = Literal['none', 'token', 'bos']
SIGNAL_IDS: dict[str, int] = {'none': 0, 'token': 2, 'bos': 1}
"""How many ids a direction signal takes; they are the last ones of a model's vocabulary."""


def check_choices(config: Any) -> None:
  """Raises ValueError, suggesting the nearest, for a field that has none of the names it may have."""
  for name, hint in get_type_hints(type(config)).items():
    value = getattr(config, name)
    if get_origin(hint) is Literal and value not in get_args(hint):
      raise errors.unknown(name, value, get_args(hint))


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
    check_choices(self)
    if self.theta <= 0 or self.factor <= 0:
      raise ValueError(f'RoPE needs theta > 0 and factor > 0, got {self.theta=} and {self.factor=}.')
    if not 0 < self.fraction <= 1:
      raise ValueError(f'{self.fraction=}: the rotated part of a head is in (0, 1].')


@dataclasses.dataclass(frozen=True)
class SinkConfig:
  """A slot beside the tokens, seen by every query, where attention can go that would else go to the first token."""

  kind: Literal['none', 'token', 'kv', 'k', 'v', 'logit'] = 'none'
  """token: a learned embedding before the first token. kv: a learned key and value in every layer. k: a learned key with a
  fixed value. v: a learned vector added to every head's output. logit: a learned logit per head, value 0."""
  shared: bool = False
  """kv, k, v: one for all heads of a layer."""
  learned_dims: int | None = None
  """k: only the first so many dimensions of the key are learned, the others are 0 (none: all)."""
  value: Literal['zero', 'unit', 'ones'] = 'zero'
  """k: direction of the fixed value; unit is (1, 0, ...), ones is (1, 1, ...) / sqrt(head_dim)."""
  value_scale: float = 1.0
  """k: length of the fixed value."""

  def __post_init__(self):
    check_choices(self)


@dataclasses.dataclass(frozen=True)
class DropoutConfig:
  """Dropout, in training only: numbers are set to 0 at random, and those that stay are divided by 1 - rate.

  It hinders a model from learning its training text by heart; 0.1 to 0.3 helps where the text is read many times.
  """

  residual: float = 0.0
  """Rate for what attention and the MLP add to the residual stream, and for the embeddings that the first layer reads."""
  attention: float = 0.0
  """Rate for the attention weights. Above 0, training computes them without the fused kernels, which takes more memory."""
  mlp: float = 0.0
  """Rate for the hidden layer of the MLP."""

  def __post_init__(self):
    for name in ('residual', 'attention', 'mlp'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f'dropout.{name}={getattr(self, name)} must be within [0, 1): it is the share that is set to 0.'
        )


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
  norm_plus_one: bool = False
  """RMSNorm multiplies by 1 + weight instead of by weight, and new weights are 0 (Gemma)."""
  activation: Activation = 'silu'
  gated_mlp: bool = True
  """down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))."""
  parallel_residual: bool = False
  """Attention and MLP read the same residual stream and are added together (GPT-NeoX)."""
  norm_placement: Literal['pre', 'post', 'hybrid', 'sandwich'] = 'pre'
  """pre: x + f(norm(x)). post: norm(x + f(x)), without a final norm. hybrid: pre, and a norm on the attention's output.
  sandwich: pre, and a norm on the outputs of attention and MLP, x + norm(f(norm(x))) (Gemma 2 and 3)."""
  position: Position = 'rope'
  """Added to the embedding (learned, sinusoidal), rotated into queries and keys (rope), or added to the logits by distance:
  alibi, relative_t5 (a learned table per head), relative_paper (the attention-sink code's fixed one)."""
  rope: RopeConfig = RopeConfig()
  local_rope_theta: float | None = None
  """Base of the RoPE wavelengths in layers with a sliding window, which are not stretched; all other layers use `rope`
  (Gemma 3). none: all layers use `rope`."""
  attention: Operation = 'softmax'
  """How attention logits become weights; *_norm divides them by their sum."""
  attention_power: float = 1.0
  """p of the normaliser (sum w^p)^(1/p), for softmax, sigmoid_norm and elu1_norm."""
  attention_row_sum: float = 1.0
  """Weights are multiplied by this (softmax: rows sum to it)."""
  attention_offset: float | Literal['neg_log_n'] = 0.0
  """Added to the logits; neg_log_n is -log(max_length), which tames sigmoid's long rows."""
  head_mixing: Literal['concat', 'sum'] = 'concat'
  """Heads are concatenated before the output projection, or added up."""
  sink: SinkConfig = SinkConfig()
  causal: bool = True
  """A token sees itself and earlier tokens. Without it, a token sees the whole sequence, as in an encoder or a
  non-autoregressive decoder; such a model cannot be trained to predict the next token."""
  prefix: int = 0
  """Prefix LM: the first so many tokens are seen by every token, also by earlier ones (0: causal)."""
  qk_norm: bool = False
  """RMSNorm on each query and key head before positions (Qwen3, Gemma 3)."""
  query_scale_dim: int | None = None
  """Products of queries and keys are divided by the square root of this number (none: head_dim)."""
  qkv_bias: bool = False
  out_bias: bool = False
  """Bias of the attention output projection."""
  mlp_bias: bool = False
  tied_embeddings: bool = False
  """The output layer is the transposed embedding."""
  scaled_embeddings: bool = False
  """Token embeddings are multiplied by sqrt(model_dim), rounded to `dtype`, before the first layer (Gemma)."""
  windows: tuple[int, ...] = ()
  """Sliding window of each layer in tokens, itself included (0: unlimited); a shorter tuple repeats over the layers. A model
  that is not causal sees as many tokens on the other side, too."""
  attention_softcap: float | None = None
  """Attention logits become cap * tanh(logits / cap)."""
  logit_softcap: float | None = None
  """Output logits become cap * tanh(logits / cap)."""
  init: Literal['sink', 'normal', 'xavier'] = 'sink'
  """Distribution of new weight matrices. sink: N(0, 0.4 / fan_in), narrower at the end of a gated MLP, as in the attention-sink
  paper. normal: N(0, init_std^2) as in GPT-2 and Llama. xavier: Xavier uniform, and N(0, 1 / model_dim) for the embedding and
  output layer, as in translation models."""
  init_std: float = 0.02
  """normal: standard deviation of the weights."""
  dropout: DropoutConfig = DropoutConfig()
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'bfloat16'
  """Computation dtype; parameters and attention logits stay float32 in training."""
  remat: Literal['none', 'dots', 'full'] = 'none'
  """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""
  direction: Direction = 'forward'
  """Which way the model learned to read texts. Trainers set it from --direction."""
  direction_signal: DirectionSignal = 'none'
  """What tells it: nothing, one of two ids after BOS, or a BOS of its own for reverse texts; these are the vocabulary's last
  ids. Trainers set it from --reverse.signal."""

  def __post_init__(self):
    check_choices(self)
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
    if self.direction == 'forward' and self.direction_signal != 'none':
      raise ValueError(f"{self.direction_signal=} needs direction='reverse' or 'both', not 'forward'.")
    if self.vocab_size <= (extra := SIGNAL_IDS[self.direction_signal]):
      raise ValueError(f'{self.vocab_size=} leaves no room beside the {extra} ids of {self.direction_signal=}.')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f'{self.num_heads=} is not a multiple of {self.num_kv_heads=}.')
    if self.position == 'rope' and self.rotated_dim % 2:
      raise ValueError(f'RoPE rotates pairs: {self.head_dim=} x {self.rope.fraction=} = {self.rotated_dim} is odd.')
    if self.attention_power != 1.0 and self.attention not in POWERED:
      raise ValueError(f'{self.attention_power=} is for {", ".join(POWERED)}, not for {self.attention!r}.')
    if self.attention_power <= 0 or self.attention_row_sum <= 0:
      raise ValueError(f'{self.attention_power=} and {self.attention_row_sum=} must be positive.')
    if not 0 <= self.prefix <= self.max_length:
      raise ValueError(f'{self.prefix=} must be within 0 .. {self.max_length=}.')
    if not self.causal and (self.prefix or self.sink.kind == 'token'):
      raise ValueError(
        f'{self.prefix=} and {self.sink.kind=} need causal=True: without it every token sees the whole sequence.'
      )
    if self.norm_plus_one and self.norm != 'rmsnorm':
      raise ValueError(f"norm_plus_one needs norm='rmsnorm', not {self.norm!r}.")
    if self.local_rope_theta is not None and (self.position != 'rope' or self.local_rope_theta <= 0):
      raise ValueError(f"{self.local_rope_theta=} must be positive and needs position='rope', not {self.position!r}.")
    if self.query_scale_dim is not None and self.query_scale_dim < 1:
      raise ValueError(f'{self.query_scale_dim=} must be at least 1, or None for head_dim.')
    if not self.init_std > 0:
      raise ValueError(f'{self.init_std=} must be positive.')
    if self.parallel_residual and self.norm_placement != 'pre':
      raise ValueError(f"parallel_residual needs norm_placement='pre', not {self.norm_placement!r}.")
    if self.sink.learned_dims is not None and not 0 <= self.sink.learned_dims <= self.head_dim:
      raise ValueError(f'{self.sink.learned_dims=} must be within 0 .. {self.head_dim=}.')
    if any(w < 0 for w in self.windows) or len(self.windows) > self.num_layers:
      raise ValueError(f'{self.windows=}: at most {self.num_layers} windows, each 0 (unlimited) or a number of tokens.')
    for name in ('attention_softcap', 'logit_softcap'):
      if getattr(self, name) is not None and getattr(self, name) <= 0:
        raise ValueError(f'{name}={getattr(self, name)} must be positive, or None for no cap.')

  @property
  def rotated_dim(self) -> int:
    return int(self.head_dim * self.rope.fraction)

  @property
  def query_scale(self) -> float:
    return (self.query_scale_dim or self.head_dim) ** -0.5

  @property
  def logit_offset(self) -> float:
    return -math.log(self.max_length) if self.attention_offset == 'neg_log_n' else self.attention_offset

  def check_causal(self, what: str) -> None:
    """Raises ValueError if the model sees later tokens; `what` names the thing that needs one that does not."""
    if not self.causal:
      raise ValueError(f'{what} needs a causal model; this one has causal=False, so its tokens see later ones.')

  def window(self, layer: int) -> int | None:
    """Sliding window of `layer` in tokens, or None."""
    return (self.windows[layer % len(self.windows)] or None) if self.windows else None

  def replace(self, **changes) -> 'ModelConfig':
    return dataclasses.replace(self, **changes)


TRAINING_ONLY = ('init', 'init_std', 'dropout')
"""Fields of a ModelConfig that only training reads: what a trained model computes does not depend on them."""
ADDED = ('causal', 'norm_plus_one', 'local_rope_theta', 'query_scale_dim', 'scaled_embeddings')
"""Fields that were added after models had been saved by their fields; at their defaults they change nothing."""


def computing_fields(config: ModelConfig) -> dict[str, Any]:
  """Returns, as JSON, the fields that what a trained model computes may depend on: what saved files know a model by.

  Fields in ADDED are among them only where they are not at their defaults, since older files know models without them.
  """
  defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in ADDED}
  omitted = (*TRAINING_ONLY, *(name for name, value in defaults.items() if getattr(config, name) == value))
  return {name: value for name, value in to_dict(config).items() if name not in omitted}


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
  if 'sink' in fields:
    fields['sink'] = SinkConfig(**fields['sink'])
  if 'dropout' in fields:
    fields['dropout'] = DropoutConfig(**fields['dropout'])
  if 'windows' in fields:
    fields['windows'] = tuple(fields['windows'])
  return ModelConfig(**fields)
