"""Configuration of a model. This file does not import JAX, so that a command shows its help at once."""

import dataclasses
import json
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxlm import config_fields, errors

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
"""Number of token ids that each direction signal uses; they are the last ids of a model's vocabulary."""


def check_choices(config: Any) -> None:
  """Raises ValueError for a Literal field with a value that is not allowed; the message suggests the nearest allowed value."""
  for name, hint in get_type_hints(type(config)).items():
    value = getattr(config, name)
    if get_origin(hint) is Literal and value not in get_args(hint):
      raise errors.unknown(name, value, get_args(hint))


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary position embedding (RoPE), and how it is scaled to contexts longer than the training length."""

  theta: float = 10000.0
  """Base of the rotation frequencies, theta^(-2i / dimensions)."""
  fraction: float = 1.0
  """Fraction of each head's dimensions that is rotated (GPT-NeoX: 0.25)."""
  scaling: Literal['none', 'linear', 'dynamic', 'llama3', 'yarn'] = 'none'
  """Method that extends the context beyond `original_length`."""
  factor: float = 1.0
  """The context becomes longer by about this factor."""
  original_length: int = 0
  """Context length before scaling, in tokens (0: the model's max_length)."""
  low_freq_factor: float = 1.0
  """llama3: wavelengths longer than original_length / low_freq_factor are scaled by the whole factor."""
  high_freq_factor: float = 4.0
  """llama3: wavelengths shorter than original_length / high_freq_factor are not scaled."""
  beta_fast: float = 32.0
  """yarn: dimensions with more than this number of rotations over original_length are not scaled."""
  beta_slow: float = 1.0
  """yarn: dimensions with fewer than this number of rotations are scaled by the whole factor."""
  attention_factor: float | None = None
  """yarn: number that multiplies cos and sin (none: 0.1 ln(factor) + 1)."""
  truncate: bool = True
  """yarn: rounds the first and the last dimension of the ramp between the two betas to whole dimensions."""

  def __post_init__(self):
    check_choices(self)
    if self.theta <= 0 or self.factor <= 0:
      raise ValueError(f'RoPE needs theta > 0 and factor > 0, got {self.theta=} and {self.factor=}.')
    for name in ('low_freq_factor', 'high_freq_factor', 'beta_fast', 'beta_slow', 'attention_factor'):
      if getattr(self, name) is not None and not getattr(self, name) > 0:
        raise ValueError(f'RoPE needs {name} > 0, got {getattr(self, name)}.')
    if self.original_length < 0:
      raise ValueError(f'{self.original_length=} must be 0 (the max_length of the model) or more.')
    if not 0 < self.fraction <= 1:
      raise ValueError(f'{self.fraction=}: the rotated part of a head is in (0, 1].')


@dataclasses.dataclass(frozen=True)
class SinkConfig:
  """An extra token, key or logit that every query sees. It can receive the attention that otherwise goes to the first token."""

  kind: Literal['none', 'token', 'kv', 'k', 'v', 'logit'] = 'none'
  """token: a learned embedding before the first token. kv: a learned key and value in every layer. k: a learned key with a
  fixed value. v: a learned vector added to every head's output. logit: a learned logit per head, value 0."""
  shared: bool = False
  """kv, k, v: all heads of a layer share one vector."""
  learned_dims: int | None = None
  """k: number of leading dimensions of the key that are learned; the others are 0 (none: all are learned)."""
  value: Literal['zero', 'unit', 'ones'] = 'zero'
  """k: direction of the fixed value; unit is (1, 0, ...), ones is (1, 1, ...) / sqrt(head_dim)."""
  value_scale: float = 1.0
  """k: norm of the fixed value."""

  def __post_init__(self):
    check_choices(self)


@dataclasses.dataclass(frozen=True)
class DropoutConfig:
  """Dropout, in training only: numbers are set to 0 at random, and the others are divided by 1 - rate.

  Dropout reduces overfitting: 0.1 to 0.3 helps when training repeats the same text many times.
  """

  residual: float = 0.0
  """Rate for the outputs of attention and MLP before they are added to the residual stream, and for the embeddings."""
  attention: float = 0.0
  """Rate for the attention weights. Above 0, training computes them without the fused kernels, which takes more memory."""
  mlp: float = 0.0
  """Rate for the hidden layer of the MLP."""

  def __post_init__(self):
    for name in ('residual', 'attention', 'mlp'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f'dropout.{name}={getattr(self, name)} must be within [0, 1): it is the fraction of numbers that is set to 0.'
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
  """Attention and MLP read the same input, and both outputs are added to it (GPT-NeoX)."""
  norm_placement: Literal['pre', 'post', 'hybrid', 'sandwich'] = 'pre'
  """pre: x + f(norm(x)). post: norm(x + f(x)), without a final norm. hybrid: pre, and a norm on the attention's output.
  sandwich: pre, and a norm on the outputs of attention and MLP, x + norm(f(norm(x))) (Gemma 2 and 3)."""
  position: Position = 'rope'
  """Position encoding. learned, sinusoidal: added to the embedding. rope: rotates queries and keys. alibi, relative_t5 (a learned
  table per head), relative_paper (the fixed table of the attention-sink paper's code): added to the logits by distance."""
  rope: RopeConfig = RopeConfig()
  local_rope_theta: float | None = None
  """Base of the RoPE wavelengths in layers with a sliding window, which are not stretched; all other layers use `rope`
  (Gemma 3). none: all layers use `rope`."""
  attention: Operation = 'softmax'
  """How attention logits become weights; the operations *_norm divide the weights by their sum."""
  attention_power: float = 1.0
  """Power p of the normaliser (sum w^p)^(1/p), for softmax, sigmoid_norm and elu1_norm."""
  attention_row_sum: float = 1.0
  """Factor on the attention weights (softmax: each row sums to it)."""
  attention_offset: float | Literal['neg_log_n'] = 0.0
  """Number added to the attention logits. neg_log_n is -log(max_length), which keeps the sum of sigmoid weights small in long
  sequences."""
  head_mixing: Literal['concat', 'sum'] = 'concat'
  """Whether the heads' outputs are concatenated or summed before the output projection."""
  output_gate: Literal['none', 'head', 'element'] = 'none'
  """Multiplies the heads' outputs by sigmoid(x W), where x is the input of attention: one number per head, or one per element
  (https://arxiv.org/abs/2505.06708)."""
  sink: SinkConfig = SinkConfig()
  causal: bool = True
  """True: a token sees itself and earlier tokens. False: a token sees the whole sequence, as in an encoder or a
  non-autoregressive decoder; such a model cannot be trained to predict the next token."""
  prefix: int = 0
  """Prefix LM: number of first tokens that every token sees, earlier ones included (0: causal)."""
  qk_norm: bool = False
  """Applies RMSNorm to each query and key head before the position encoding (Qwen3, Gemma 3)."""
  query_scale_dim: int | None = None
  """Products of queries and keys are divided by the square root of this number (none: head_dim)."""
  qkv_bias: bool = False
  out_bias: bool = False
  """Bias of the attention output projection."""
  mlp_bias: bool = False
  tied_embeddings: bool = False
  """The output layer is the transposed embedding."""
  embedding_norm: bool = False
  """The sum of token and position embeddings goes through a norm before the first layer (BERT)."""
  scaled_embeddings: bool = False
  """Token embeddings are multiplied by sqrt(model_dim), rounded to `dtype`, before the first layer (Gemma)."""
  windows: tuple[int, ...] = ()
  """Sliding window of each layer, in tokens, the query itself included (0: unlimited); a shorter tuple repeats over the layers.
  In a model that is not causal, the window extends equally far to both sides."""
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
  """What the backward pass recomputes to save memory: nothing, everything but matrix products, or whole layers."""
  implementation: Literal['default', 'xla', 'pallas'] = 'default'
  """How attention is computed. default: the fastest way on the device; in float32 exactly, without kernels. xla: without kernels. pallas:
  whole sequences by our kernels, which must know the model's attention, and decoding steps where they can. A model that is loaded has the
  default."""
  direction: Direction = 'forward'
  """The direction in which the model was trained to read text. Trainers set it from --direction."""
  direction_signal: DirectionSignal = 'none'
  """How a text shows its direction. none: not at all. token: one of two ids after BOS. bos: reverse texts begin with another BOS.
  These ids are the last ones of the vocabulary. Trainers set it from --reverse.signal."""

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
      raise ValueError(f'{self.vocab_size=} leaves no room for tokens: {self.direction_signal=} takes {extra} ids.')
    if not self.norm_eps >= 0:
      raise ValueError(f'{self.norm_eps=} must not be negative.')
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
    """Raises ValueError if the model is not causal; `what` names the operation that needs a causal model."""
    if not self.causal:
      raise ValueError(f'{what} needs a causal model; this one has causal=False, so its tokens see later ones.')

  def window(self, layer: int) -> int | None:
    """Sliding window of `layer` in tokens, or None."""
    return (self.windows[layer % len(self.windows)] or None) if self.windows else None

  def replace(self, **changes) -> 'ModelConfig':
    return dataclasses.replace(self, **changes)


TRAINING_ONLY = ('init', 'init_std', 'dropout')
"""Fields of a ModelConfig that only training reads. The outputs of a trained model do not depend on them."""
HOW = ('implementation',)
"""Fields of a ModelConfig that choose among ways to compute the same outputs."""
ADDED = (
  'causal', 'norm_plus_one', 'local_rope_theta', 'query_scale_dim', 'scaled_embeddings', 'embedding_norm', 'output_gate'
)  # fmt: skip
"""Fields that are newer than some saved files. At their defaults they change nothing."""


def computing_fields(config: ModelConfig) -> dict[str, Any]:
  """Returns, as JSON, the fields that the outputs of a trained model may depend on. Saved files identify a model by them.

  Fields in ADDED are included only if they differ from their defaults: older files were written before these fields existed.
  """
  defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in ADDED}
  omitted = (*TRAINING_ONLY, *HOW, *(name for name, value in defaults.items() if getattr(config, name) == value))
  return {name: value for name, value in to_dict(config).items() if name not in omitted}


def to_dict(config: Any) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config)))


def model_config(fields: dict[str, Any]) -> ModelConfig:
  """Returns the ModelConfig that `to_dict` wrote.

  Raises:
    ValueError: a field is unknown in this version, or its value has the wrong type or is out of range.
  """
  return config_fields.read(ModelConfig, fields, 'model')
