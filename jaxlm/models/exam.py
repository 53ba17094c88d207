"""Text classifier with explicit interaction of words and classes (EXAM, https://arxiv.org/abs/1811.09386), and its baselines.

  tokens [B, L]  ->  states [B, P, K]  ->  scores [B, C, P]  ->  logits [B, C]
           encoder            class table            aggregation

The encoders are in `jaxlm.models.word_encoders`, what follows them in `jaxlm.models.interaction`. Special cases of the same model
are fastText (encoder ngrams, aggregator mean), the region embedding classifier (aggregator sum) and a GRU classifier (aggregator
last). The logits of several label columns lie side by side; `column_logits` takes them apart.

Paper and released code differ. The paper has neither biases of classes and outputs nor the residual sum; the code for one label has
all three, `residual='sum', class_bias=True, output_bias=True, mask='before'`, and 2 L hidden units instead of 2 P.

Letters: as in those two files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxlm.exam_config import ExamConfig
from jaxlm.models import functions, interaction, transformer, word_encoders
from jaxlm.models.blocks import dropped_at

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

XAVIER = nn.initializers.xavier_uniform()


class Affine(nn.Module):
  """Owns a kernel and, if `biases` is set, a bias; returns (kernel, bias or None)."""

  shape: tuple[int, ...]
  biases: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self):
    # A vector, as the kernel of one output unit, is initialised as a matrix with one column.
    vector = lambda key, shape, dtype: XAVIER(key, (*shape, 1), dtype)[:, 0]
    kernel = self.param('kernel', XAVIER if len(self.shape) > 1 else vector, self.shape, jnp.float32)
    return kernel, None if self.biases is None else self.param('bias', nn.initializers.zeros, self.biases, jnp.float32)


class Gru(nn.Module):
  """Recurrent layers; returns the states of the last one, in the type of its inputs."""

  config: ExamConfig

  @nn.compact
  def __call__(self, x_BLD, mask_BL):
    K = self.config.dim
    for i in range(self.config.gru_layers):
      kernel_in, bias_in = Affine((x_BLD.shape[-1], 3 * K), (3 * K,), name=f'layer_{i}_input')()
      kernel, bias = Affine((K, 3 * K), (K,), name=f'layer_{i}_state')()
      parameters = (w.astype(x_BLD.dtype) for w in (kernel_in, bias_in, kernel, bias))
      x_BLD = word_encoders.gru(x_BLD, *parameters, mask_BL)
    return x_BLD


class Exam(nn.Module):
  """Encoder, class table and aggregation; see the module's docstring."""

  config: ExamConfig

  def setup(self):
    c, P = self.config, self.config.positions
    embed = lambda rows, width: nn.Embed(rows, width, dtype=c.dtype, embedding_init=XAVIER)
    if c.encoder != 'lm':
      self.embed = embed(c.vocab_size, c.embed_dim or c.dim if c.encoder == 'gru' else c.dim)
    if c.is_region and c.units != 'none':
      self.units = embed(c.vocab_size, c.region * (c.dim if c.units == 'vector' else 1))
    if c.encoder == 'ngrams' and c.ngrams > 1:
      self.ngram_embed = embed(c.buckets, c.dim)
    if c.encoder == 'gru':
      self.gru = Gru(c)
    self.class_table = Affine((c.classes, c.width), (c.classes,) if c.class_bias else None)
    if c.aggregator == 'mlp':
      self.mlp_in = Affine((P, c.hidden_units), (c.hidden_units,))
      self.mlp_out = Affine((c.hidden_units,), () if c.output_bias else None)

  def encode(self, tokens_BL, mask_BL):
    """Returns (states [B, P, K], which positions are real words [B, P])."""
    c, L = self.config, tokens_BL.shape[1]
    words_BLD = self.embed(tokens_BL)
    if c.is_region:
      inner = slice(c.radius, L - c.radius)
      states = [self.regions(tokens_BL, words_BLD, size) for size in (c.region, *c.regions)]
      return jnp.concatenate(states, axis=-1), mask_BL[:, inner]
    if c.encoder == 'gru':
      return self.gru(words_BLD, None if c.mask == 'none' else mask_BL), mask_BL
    if c.ngrams == 1:
      return words_BLD, mask_BL
    ids, real = word_encoders.ngram_ids(tokens_BL, mask_BL, min(c.ngrams, L), c.buckets)
    return jnp.concatenate([words_BLD, self.ngram_embed(ids)], axis=1), jnp.concatenate([mask_BL, real], axis=1)

  def regions(self, tokens_BL, words_BLD, size):
    """Returns the region embeddings [B, P, D] of regions of `size` words, whose units are the middle ones of the largest region."""
    c, (B, L) = self.config, tokens_BL.shape
    inner, cut = slice(c.radius, L - c.radius), (c.region - size) // 2
    middle, within = slice(cut, c.region - cut), slice(cut, L - cut)

    def units(tokens):
      if c.units == 'none':
        return jnp.ones((B, tokens.shape[1], size, 1), words_BLD.dtype)
      return self.units(tokens).reshape(B, tokens.shape[1], c.region, -1)[:, :, middle]

    if c.encoder == 'word-context':
      return word_encoders.region_embedding(words_BLD[:, within], units(tokens_BL[:, inner]), c.pooling)
    return word_encoders.context_word_embedding(words_BLD[:, inner], units(tokens_BL[:, within]), c.pooling)

  def readout(self):
    """Returns (class table, class bias or None, parameters of the MLP or None)."""
    mlp = None
    if self.config.aggregator == 'mlp':
      mlp = interaction.Mlp(*self.mlp_in(), *self.mlp_out())
    return *self.class_table(), mlp

  def classify(self, states_BPK, mask_BP):
    table, bias, mlp = self.readout()
    how = aggregation(self.config)
    return interaction.class_logits(states_BPK, table, bias, mask_BP, mlp, how, tile=self.config.class_tile)

  def scores(self, states_BPK, mask_BP):
    table, bias, mlp = self.readout()
    scores_BCP = interaction.interaction_scores(states_BPK, table, bias, mask_BP, self.config.mask)
    return scores_BCP, *interaction.contribution_scores(scores_BCP, mask_BP, mlp, aggregation(self.config))

  def __call__(self, tokens_BL, mask_BL):
    if self.config.encoder == 'lm':
      states_BPK = jnp.zeros((*tokens_BL.shape, self.config.width), self.config.dtype)
      return self.classify(states_BPK, mask_BL)
    return self.classify(*self.encode(tokens_BL, mask_BL))


def aggregation(config: ExamConfig) -> interaction.Aggregation:
  """Returns how a model's scores become logits."""
  return interaction.Aggregation(config.aggregator, config.residual, config.mask)


def _apply(params, config, method, *args):
  return Exam(config).apply({'params': params}, *args, method=method)


def encode(
  params: Any,
  config: ExamConfig,
  tokens: Int[Array, 'B L'],
  mask: Bool[Array, 'B L'],
  lm_params: Any = None,
  states: Float[Array, 'B P K'] | None = None,
) -> tuple[Float[Array, 'B P K'], Bool[Array, 'B P']]:
  """Returns (the representation of each position in the config's dtype, whether the position is a real word).

  Args:
    params: parameters of the classifier, as `init_params` returns them.
    config: config of the classifier.
    tokens: int32 ids of words, or of the language model's tokens.
    mask: which positions are words; the others are padding.
    lm_params: parameters of a frozen language model. No gradient flows into them.
    states: what the frozen language model says of the tokens, if it was computed before; `lm_params` are then not needed.

  Raises:
    ValueError: the language model of encoder='lm' is frozen and its parameters are not given.
  """
  if config.encoder != 'lm':
    return _apply(params, config, Exam.encode, tokens, mask)
  if states is not None:
    return states.astype(config.dtype), mask
  if config.train_lm:
    lm_params = params['lm']
  elif lm_params is None:
    raise ValueError("encoder='lm' with a frozen language model needs `lm_params`, the parameters of that model.")
  else:
    lm_params = jax.lax.stop_gradient(lm_params)
  return functions.text_states(lm_params, config.lm.model.replace(dtype=config.dtype), tokens, mask), mask


def logits(
  params: Any,
  config: ExamConfig,
  tokens: Int[Array, 'B L'],
  mask: Bool[Array, 'B L'],
  lm_params: Any = None,
  key: Array | None = None,
  states: Float[Array, 'B P K'] | None = None,
) -> Float[Array, 'B C']:
  """Returns the float32 logits of the classes of all label columns.

  Args:
    params, config, tokens, mask, lm_params, states: as for `encode`.
    key: random key for dropout in training; None: no dropout.
  """
  states, real = encode(params, config, tokens, mask, lm_params, states)
  states = dropped_at(states, config.dropout, key, 0)
  return _apply(_classifier(params), config, Exam.classify, states, real)


def scores(
  params: Any,
  config: ExamConfig,
  tokens: Int[Array, 'B L'],
  mask: Bool[Array, 'B L'],
  lm_params: Any = None,
) -> tuple[Float[Array, 'B C P'], Float[Array, 'B C P'], Float[Array, 'B C'], Bool[Array, 'B P']]:
  """Returns (interaction scores, contributions to the logits, the rest of each logit, whether a position is a real word).

  Contributions and rest add up to the logits; see `jaxlm.models.interaction.contribution_scores`. Arguments as for `encode`.
  """
  states, real = encode(params, config, tokens, mask, lm_params)
  return *_apply(_classifier(params), config, Exam.scores, states, real), real


def column_logits(config: ExamConfig, logits: Float[Array, 'B C']) -> list[Float[Array, 'B C']]:
  """Returns the logits of each label column."""
  found, first = [], 0
  for column in config.columns:
    found.append(logits[:, first : first + column.classes])
    first += column.classes
  return found


def _classifier(params: Any) -> Any:
  return {name: tree for name, tree in params.items() if name != 'lm'}


def init_params(config: ExamConfig, key: Array) -> Any:
  """Returns new float32 parameters; a trained language model is among them, also with new values, as 'lm'."""
  tokens, mask = jnp.zeros((1, config.max_length), jnp.int32), jnp.ones((1, config.max_length), bool)
  params = dict(Exam(config).init(key, tokens, mask)['params'])
  if config.encoder == 'lm' and config.train_lm:
    params['lm'] = transformer.init_params(config.lm.model, jax.random.fold_in(key, 1))
  return params


def abstract_params(config: ExamConfig) -> Any:
  """Returns the parameters' shapes and dtypes without computing anything."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
