"""Configuration of a GliDe draft, as plain data: no JAX here, so that command lines can show their help at once.

A GliDe draft (https://arxiv.org/abs/2402.02082) is a small model that reads the keys and values which its target, the model that
verifies the drafted tokens, has in its cache.
"""

import dataclasses
from typing import Any, Literal

from jaxlm import config_fields
from jaxlm.config import ModelConfig, RopeConfig, check_choices, computing_fields


@dataclasses.dataclass(frozen=True)
class Target:
  """The model whose keys and values a draft reads."""

  name: str = ''
  """Path or name that the target was loaded from, for messages ('': the target is not known yet)."""
  model: ModelConfig = ModelConfig()
  tokenizer: str = ''
  """Fingerprint of the target's tokenizer ('': it has none, or it is not known)."""

  def __str__(self) -> str:
    m = self.model
    return (
      f'{self.name or "a model"} ({m.num_layers} layers x {m.model_dim}, {m.num_heads} heads and {m.num_kv_heads} key/value heads '
      f'of {m.head_dim}, vocabulary {m.vocab_size})'
    )


@dataclasses.dataclass(frozen=True)
class GlideConfig:
  """Shape of a GliDe draft. The default is one layer, as in the paper."""

  target: Target = Target()
  """The model that the draft is trained for. Trainers set it."""
  draft: Literal['chain', 'parallel'] = 'chain'
  """chain: the draft predicts one token per call and reads it in the next call, as in the paper. parallel: it predicts a whole block
  in one call, from mask tokens, so that drafting costs one call per round."""
  num_layers: int = 1
  model_dim: int = 768
  """Width of the residual stream."""
  num_heads: int = 12
  """Heads of self-attention; each is model_dim / num_heads wide. Cross-attention has the heads of the target."""
  mlp_dim: int = 3072
  """Hidden width of the MLP."""
  cross: bool = True
  """Each layer reads keys and values of a target layer. Off: the draft is an ordinary small language model, for comparison."""
  layers: tuple[int, ...] = ()
  """Numbers of the target layers that the draft layers read, counted from 0: as many as there are draft layers, or two or
  three times as many; then each draft layer reads two or three, those of the first layer first (none given: the target's last layers, one
  each, in order)."""
  cross_start: Literal['zero', 'random'] = 'zero'
  """First output matrix of the cross-attention. zero: a new draft computes what it would compute without cross-attention. random: as
  other matrices, as in the authors' code; what is read of the target then hides the tokens until the draft has learned to use it."""
  cross_norm: bool = False
  """Applies a norm before the cross-attention. The paper's code has none."""
  embedding: Literal['own', 'target'] = 'own'
  """own: the draft has an embedding and an output layer of its own. target: it uses those of the target, which stay frozen, between
  two learned projections; this saves most of the parameters of a draft with a large vocabulary."""
  vocabulary: int = 0
  """Number of tokens that the draft can predict: those with the smallest ids, which are the most frequent ones in most tokenizers, because
  merges are numbered in the order in which they were learned (0: all). A large output layer is most of the cost of a small draft."""
  block: int = 4
  """Number of positions that share their view of the target in training. A token sees the target's tokens before its block, as a
  drafted token does before it is verified. Set it to the number of tokens that are drafted in a round."""
  first_block: Literal['zero', 'causal'] = 'zero'
  """What the first block of a training text sees of the target. zero: nothing, and the cross-attention returns 0. causal: earlier
  tokens and itself, as in the authors' code; drafting never sees that much."""
  eval_mask: Literal['strict', 'paper'] = 'strict'
  """What tokens of the text see of the target when tokens are drafted. strict: earlier tokens, as in training. paper: all verified
  tokens, later ones too, as in the authors' code. This changes the proposals of drafts with several layers alone: what a first layer keeps
  of a token does not depend on the target."""
  window: int = 0
  """Number of latest tokens that the draft's self-attention and cross-attention see (0: all). With a window, the cost of drafting does
  not grow with the length of the text."""
  rope_theta: float = 10000.0
  """Base of the RoPE frequencies of self-attention. Cross-attention uses the position encoding of the target."""
  norm_eps: float = 1e-5
  init: Literal['sink', 'normal', 'xavier'] = 'normal'
  """Distribution of new parameters; see `jaxlm.models.initializers`."""
  init_std: float = 0.02
  """normal: standard deviation of the weights."""
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'bfloat16'
  """Computation dtype; parameters and attention logits stay float32 in training."""

  def __post_init__(self):
    check_choices(self)
    for name in ('num_layers', 'model_dim', 'num_heads', 'mlp_dim', 'block'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')
    if self.model_dim % self.num_heads:
      raise ValueError(f'{self.model_dim=} is not a multiple of {self.num_heads=}.')
    if self.head_dim % 2:
      raise ValueError(f'RoPE rotates pairs: {self.model_dim=} / {self.num_heads=} = {self.head_dim} is odd.')
    if self.vocabulary < 0:
      raise ValueError(f'{self.vocabulary=} must be a number of tokens, or 0 for all.')
    if self.window < 0:
      raise ValueError(f'{self.window=} must be a number of tokens, or 0 for all.')
    if len(self.layers) % self.num_layers:
      raise ValueError(
        f'layers={self.layers} has {len(self.layers)} target layers, which {self.num_layers} draft layers cannot share evenly.'
      )
    if self.eval_mask == 'paper' and self.draft == 'parallel':
      raise ValueError("eval_mask='paper' is of the paper's chain: draft='parallel' needs eval_mask='strict'.")
    if self.target.name:
      self._check_target()

  def _check_target(self):
    L = self.target.model.num_layers
    self.target.model.check_causal('Drafting for a model')
    if not self.layers and self.num_layers > L and self.cross:
      raise ValueError(f'{self.num_layers=} draft layers read one target layer each, and {self.target} has only {L}.')
    if self.vocabulary > self.vocab_size:
      raise ValueError(f'{self.vocabulary=} is more than {self.target} has.')
    if bad := [layer for layer in self.layers if not 0 <= layer < L]:
      raise ValueError(f'layers={self.layers}: {self.target} has layers 0 to {L - 1}, not {bad[0]}.')

  @property
  def head_dim(self) -> int:
    return self.model_dim // self.num_heads

  @property
  def vocab_size(self) -> int:
    return self.target.model.vocab_size

  @property
  def num_predicted(self) -> int:
    """Number of tokens that the draft can predict, those with the smallest ids."""
    return self.vocabulary or self.vocab_size

  @property
  def max_length(self) -> int:
    """Longest text in tokens."""
    return self.target.model.max_length

  @property
  def target_layers(self) -> tuple[int, ...]:
    """Numbers of the target layers that the draft reads, those of its first layer first; () without cross-attention."""
    if not self.cross:
      return ()
    top = self.target.model.num_layers
    return self.layers or tuple(range(top - self.num_layers, top))

  def layers_of(self, layer: int) -> tuple[int, ...]:
    """Returns the numbers of the target layers that one layer of the draft reads; () without cross-attention."""
    each = len(self.target_layers) // self.num_layers
    return self.target_layers[layer * each : (layer + 1) * each]

  @property
  def logit_softcap(self) -> float | None:
    """Cap of the output logits, which belongs to the target's output layer."""
    return self.target.model.logit_softcap if self.embedding == 'target' else None

  @property
  def stack(self) -> ModelConfig:
    """The draft's layers without cross-attention."""
    return ModelConfig(
      vocab_size=self.vocab_size, num_layers=self.num_layers, model_dim=self.model_dim, num_heads=self.num_heads,
      num_kv_heads=self.num_heads, head_dim=self.head_dim, mlp_dim=self.mlp_dim, max_length=self.max_length,
      norm_eps=self.norm_eps, rope=RopeConfig(theta=self.rope_theta), windows=(self.window,) if self.window else (),
      init=self.init, init_std=self.init_std, dtype=self.dtype,
    )  # fmt: skip

  def replace(self, **changes: Any) -> 'GlideConfig':
    return dataclasses.replace(self, **changes)


def glide_config(fields: dict[str, Any]) -> GlideConfig:
  """Returns the config that `jaxlm.config.to_dict` wrote. Raises ValueError as `jaxlm.config.model_config`."""
  return config_fields.read(GlideConfig, fields, 'model')


def with_target(config: GlideConfig, lm: Any, name: str) -> GlideConfig:
  """Returns the config of a draft for the language model `lm`, which was loaded from `name`.

  Raises:
    ValueError: the model is not causal, or the draft's layers do not fit its layers.
  """
  tokenizer = getattr(lm.tokenizer, 'fingerprint', None) or ''
  return config.replace(target=Target(name or 'a model', lm.config, str(tokenizer)))


NOT_COMPARED = ('dtype', 'remat')
"""Fields in which a target may differ from the one that a draft was trained for."""


def check_target(config: GlideConfig, lm: Any) -> None:
  """Raises ValueError that names both models if `lm` is not the target that the draft was trained for.

  Shape, position encoding, vocabulary and tokenizer are compared, and the weights are not: a draft may be used for a finetuned
  target, whose output stays exact, though fewer drafted tokens may be accepted.
  """
  tokenizer = str(getattr(lm.tokenizer, 'fingerprint', None) or '')
  given = Target('this model', lm.config, tokenizer)
  ours, theirs = computing_fields(config.target.model), computing_fields(lm.config)
  for name in sorted({*ours, *theirs} - set(NOT_COMPARED)):
    if ours.get(name) != theirs.get(name):
      raise ValueError(
        f'The draft was trained for {config.target}, and not for {given}: {name} is {ours.get(name)!r} there and '
        f'{theirs.get(name)!r} here. Load the model that the draft was trained for, or train a draft for this one.'
      )
  if config.target.tokenizer and tokenizer and config.target.tokenizer != tokenizer:
    raise ValueError(
      f'The draft was trained for {config.target} with the tokenizer {config.target.tokenizer[:12]}, and {given} has the '
      f'tokenizer {tokenizer[:12]}: the same ids stand for other texts. Load the model with the tokenizer of the training.'
    )
