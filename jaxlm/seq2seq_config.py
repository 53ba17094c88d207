"""The shape of an encoder-decoder, as plain data: no JAX here, so that command lines can show their help at once."""

import dataclasses
from typing import Any, Literal

from jaxlm import config_fields
from jaxlm.config import Activation, DropoutConfig, ModelConfig, check_choices

MarkovMode = Literal['transparent', 'naive', 'split', 'unroll']


@dataclasses.dataclass(frozen=True)
class NatConfig:
  """What is particular to decoders that predict all target tokens at once."""

  decoder_input: Literal['mask', 'uniform_copy'] = 'mask'
  """What the decoder reads at T target positions. mask: one learned vector everywhere. uniform_copy: at position i the encoder's state
  of the source token round(i S / T), of S source tokens."""
  upsampling: int = 0
  """For the loss ctc: the decoder has this many positions for each source token, and its repeated and blank tokens are removed (0: a
  classifier on the encoder predicts the length)."""

  def __post_init__(self):
    check_choices(self)
    if self.upsampling < 0:
      raise ValueError(
        f'{self.upsampling=} must be at least 1 position for each source token, or 0 for predicted lengths.'
      )


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
  """Shape of an encoder-decoder transformer. The defaults are transformer-base of https://arxiv.org/abs/1706.03762."""

  kind: Literal['autoregressive', 'nat', 'cmlm'] = 'autoregressive'
  """How targets are predicted. autoregressive: token by token. nat: all tokens at once. cmlm: all tokens at once, or the masked ones
  from those that are known, so that decoding can refine a target in several passes."""
  nat: NatConfig = NatConfig()
  vocab_size: int = 8192
  """Number of target token ids. Trainers set it from the tokenizer."""
  source_vocab_size: int = 0
  """Number of source token ids (0: as many as target ids, from one vocabulary). Trainers set it from the tokenizer."""
  start_id: int = 1
  """Id that every target begins with. Trainers set the three ids from the tokenizer."""
  eos_id: int = 2
  """Id that every target ends with."""
  source_eos_id: int | None = None
  """Id that every source ends with (none: eos_id)."""
  pad_id: int = 0
  """Id that fills short rows; it is never generated."""
  encoder_layers: int = 6
  decoder_layers: int = 6
  model_dim: int = 512
  """Width of the residual stream."""
  num_heads: int = 8
  """Heads of each attention, in encoder and decoder; each is model_dim / num_heads wide."""
  mlp_dim: int = 2048
  """Hidden width of the MLP."""
  max_length: int = 512
  """Longest source and longest target in tokens."""
  norm: Literal['layernorm', 'rmsnorm'] = 'layernorm'
  norm_eps: float = 1e-5
  """Added to the variance that a norm divides by."""
  norm_placement: Literal['pre', 'post'] = 'pre'
  """pre: x + f(norm(x)), which trains without a long warm-up. post: norm(x + f(x)), as the original transformer and OPUS-MT."""
  activation: Activation = 'relu'
  biases: bool = True
  """Every projection and the MLP have biases."""
  position: Literal['sinusoidal', 'learned', 'relative'] = 'sinusoidal'
  """How the model knows the positions of tokens. sinusoidal, learned: something is added to the embeddings. relative: the decoder's
  self-attention adds a learned number to its logits for each head and distance, as T5 does, and knows no absolute position; the
  encoder adds sinusoids. A prediction of order k then depends on the last k tokens and the source, wherever the tokens stand."""
  embeddings: Literal['shared', 'tied', 'separate'] = 'shared'
  """shared: one matrix embeds source and target tokens and is the output layer. tied: the target's embedding is the output layer.
  separate: three matrices."""
  scaled_embeddings: bool = True
  """Token embeddings are multiplied by sqrt(model_dim)."""
  output_bias: bool = False
  """A learned bias is added to the logits (OPUS-MT)."""
  markov_order: int = 0
  """A target token is predicted from this many target tokens before it, and the whole source (0: from all of them)."""
  markov_mode: MarkovMode = 'transparent'
  """How the order is kept. transparent: keys and values of all decoder layers are made of the embeddings, so the order is exact.
  naive: each layer sees the order's last tokens, so L layers together see L (order - 1) + 1. split: layers share the order
  between them, which is exact as well. unroll: an ordinary decoder reads the last tokens anew for each prediction, which is
  exact and the strongest, and takes `markov_order` times the time and memory."""
  dropout: DropoutConfig = DropoutConfig()
  init: Literal['sink', 'normal', 'xavier'] = 'xavier'
  """Distribution of new parameters; see `jaxlm.models.initializers`."""
  init_std: float = 0.02
  """normal: standard deviation."""
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'bfloat16'
  """Computation dtype; parameters and attention logits stay float32 in training."""
  remat: Literal['none', 'dots', 'full'] = 'none'
  """What the backward pass recomputes: nothing, all but matrix products, or whole layers."""

  def __post_init__(self):
    check_choices(self)
    for name in ('vocab_size', 'encoder_layers', 'decoder_layers', 'model_dim', 'num_heads', 'mlp_dim', 'max_length'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')
    if self.model_dim % self.num_heads:
      raise ValueError(f'{self.model_dim=} is not a multiple of {self.num_heads=}.')
    if self.model_dim % 2 and self.position != 'learned':
      raise ValueError(f'{self.position=} adds sinusoids, which need an even width, not {self.model_dim=}.')
    if self.source_vocab_size < 0:
      raise ValueError(f'{self.source_vocab_size=} must not be negative.')
    if self.source_vocab_size not in (0, self.vocab_size) and self.embeddings == 'shared':
      raise ValueError(
        f"embeddings='shared' needs one vocabulary, not {self.source_vocab_size=} and {self.vocab_size=}."
      )
    for name in ('start_id', 'eos_id', 'pad_id'):
      if not 0 <= getattr(self, name) < self.vocab_size:
        raise ValueError(f'{name}={getattr(self, name)} is not within 0 .. {self.vocab_size=} - 1.')
    if not 0 <= self.source_end_id < (size := self.source_vocab_size or self.vocab_size):
      raise ValueError(
        f'The id that sources end with, {self.source_end_id}, is not within 0 .. {size} - 1 (source_eos_id).'
      )
    if self.markov_order < 0:
      raise ValueError(f'{self.markov_order=} must be at least 1, or 0 for no limit.')
    self._check_parallel()

  def _check_parallel(self):
    if not self.is_parallel and self.nat != NatConfig():
      raise ValueError(
        f"{self.nat} needs kind='nat' or 'cmlm', not {self.kind=}: an autoregressive decoder reads its own tokens."
      )
    if self.is_parallel and self.markov_order:
      raise ValueError(
        f"{self.markov_order=} needs kind='autoregressive': {self.kind=} predicts all target tokens at once, without a history."
      )
    if self.is_parallel and self.position == 'relative':
      raise ValueError(
        f"{self.position=} needs kind='autoregressive': {self.kind=} predicts all target tokens from inputs that may all be alike, "
        "such as masks, so its decoder has to know absolute positions. Use position='sinusoidal' or 'learned'."
      )
    if self.kind == 'cmlm' and self.nat != NatConfig():
      raise ValueError(f"{self.nat} needs kind='nat': the decoder of kind='cmlm' reads known tokens and masks.")

  @property
  def head_dim(self) -> int:
    return self.model_dim // self.num_heads

  @property
  def source_end_id(self) -> int:
    """Id that every source ends with."""
    return self.eos_id if self.source_eos_id is None else self.source_eos_id

  @property
  def num_kv_heads(self) -> int:
    return self.num_heads

  @property
  def is_parallel(self) -> bool:
    """Whether the decoder predicts all target tokens at once (kinds nat and cmlm)."""
    return self.kind != 'autoregressive'

  @property
  def mask_id(self) -> int:
    """Id that unknown target tokens have, and the blank of CTC: the last one. It is not one of the tokenizer's ids."""
    return self.vocab_size - 1

  @property
  def target_positions(self) -> int:
    """Number of positions that the decoder has at most."""
    return self.max_length * max(1, self.nat.upsampling)

  @property
  def is_markov(self) -> bool:
    """Whether a target token is predicted from exactly the last `markov_order` tokens."""
    return self.markov_order > 0 and self.markov_mode != 'naive'

  @property
  def reads_embeddings(self) -> bool:
    """Whether keys and values of the decoder's self-attention are made of the embeddings."""
    return self.markov_order > 0 and self.markov_mode == 'transparent'

  @property
  def rereads(self) -> bool:
    """Whether an ordinary decoder reads the last `markov_order` tokens anew for each prediction."""
    return self.markov_order > 0 and self.markov_mode == 'unroll'

  @property
  def encoder(self) -> ModelConfig:
    """The encoder's stack of layers."""
    return self._stack(self.encoder_layers, causal=False)

  @property
  def decoder(self) -> ModelConfig:
    """The decoder's stack of layers, without cross-attention."""
    position = 'relative_t5' if self.position == 'relative' else 'none'
    return self._stack(self.decoder_layers, causal=not self.is_parallel, position=position, windows=self._windows())

  @property
  def cross(self) -> ModelConfig:
    """The decoder's cross-attention: every source token is seen."""
    return self._stack(self.decoder_layers, causal=False)

  def _windows(self) -> tuple[int, ...]:
    if not self.markov_order or self.rereads:
      return ()
    if self.markov_mode != 'split':
      return (self.markov_order,)
    # Windows w_l with sum (w_l - 1) = order - 1, the wider ones in the lower layers.
    whole, rest = divmod(self.markov_order - 1, self.decoder_layers)
    return tuple(1 + whole + (layer < rest) for layer in range(self.decoder_layers))

  def _stack(self, layers: int, **changes: Any) -> ModelConfig:
    b = self.biases
    return ModelConfig(
      vocab_size=self.vocab_size, num_layers=layers, model_dim=self.model_dim, num_heads=self.num_heads,
      num_kv_heads=self.num_heads, head_dim=self.head_dim, mlp_dim=self.mlp_dim, max_length=self.max_length,
      norm=self.norm, norm_eps=self.norm_eps, norm_placement=self.norm_placement, activation=self.activation, gated_mlp=False,
      qkv_bias=b, out_bias=b, mlp_bias=b, dropout=self.dropout, init=self.init, init_std=self.init_std,
      dtype=self.dtype, remat=self.remat, **{'position': 'none'} | changes,
    )  # fmt: skip

  def replace(self, **changes: Any) -> 'Seq2SeqConfig':
    return dataclasses.replace(self, **changes)


def seq2seq_config(fields: dict[str, Any]) -> Seq2SeqConfig:
  """Returns the config that `jaxlm.config.to_dict` wrote. Raises ValueError as `jaxlm.config.model_config`."""
  return config_fields.read(Seq2SeqConfig, fields, 'model')
