"""GliDe's draft model, which reads the keys and values in the cache of its target (https://arxiv.org/abs/2402.02082).

  x = x + attention(norm(x));  x = x + cross(x);  x = x + mlp(norm(x));  logits = head(norm(x))

A layer may read several layers of the target: then `cross` is a sum of one cross-attention for each.

The queries of the cross-attention are projections of x to the heads of the target, rotated as the target rotates its own. The keys
and values are those that a layer of the target has computed; a query sees the first `seen` of them. While drafting, these are the
tokens that the target has verified, so a token that is drafted later in a round lags further behind what it sees.

`jaxlm.models.glide_training` gives the tokens of a text the same views in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxlm import caches
from jaxlm.attention import positions as rope
from jaxlm.attention.rule import AttentionRule
from jaxlm.glide_config import GlideConfig
from jaxlm.models import functions
from jaxlm.models.blocks import Block, Dense, norm
from jaxlm.models.initializers import initializers
from jaxlm.models.transformer import cap

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


class Shared(NamedTuple):
  """Frozen arrays of the target that a draft with `embedding='target'` uses."""

  embedding: jax.Array  # [V, E], E is the target's width
  head: jax.Array  # [E, C], C tokens that the draft can predict


class Cross(nn.Module):
  """Cross-attention into one layer of the target. It has no projections of keys and values."""

  config: GlideConfig
  layer: int
  """Number of the target layer."""

  def setup(self):
    c, t = self.config, self.config.target.model
    heads, init = (t.num_heads, t.head_dim), initializers(self.config.stack).matrix
    self.q = Dense((c.model_dim,), heads, False, c.dtype, init)
    self.o = Dense(heads, (c.model_dim,), False, c.dtype, nn.initializers.zeros if c.cross_start == 'zero' else init)

  def __call__(self, x_BTD, rotations, seen_BT, target: caches.Readable):
    t = self.config.target.model
    q_BTNH = self.q(x_BTD)
    if t.position == 'rope':
      q_BTNH = rope.rotate(q_BTNH, *rope.rotation_of(t, rotations, self.layer))
    seen_BT = seen_BT + num_before(self.config)
    # A query reads with the position of the last token that it sees. ALiBi's terms thereby change by one number for all keys of a
    # query, which the softmax ignores.
    rule = AttentionRule(
      'softmax',
      t.head_dim**-0.5,
      window=self.config.window or None,
      position='alibi' if t.position == 'alibi' else 'none',
    )
    out_BTNH = target.read(self.layer, q_BTNH, seen_BT - 1, rule)
    return self.o(jnp.where((seen_BT > 0)[:, :, None, None], out_BTNH, 0))


class DraftBlock(Block):
  """A layer of the draft: self-attention, cross-attention, MLP."""

  draft: GlideConfig

  def setup(self):
    super().setup()
    layers = self.draft.layers_of(self.layer)
    self.crosses = [Cross(self.draft, layer, name=name) for layer, name in zip(layers, cross_names(self.draft))]
    if self.draft.cross and self.draft.cross_norm:
      self.cross_norm = norm(self.config, 'cross_norm')

  def __call__(self, x_BTD, positions_BT, scheme, cache, rotations, seen_BT, target):
    x_BTD, cache = self.attention_block(x_BTD, positions_BT, scheme, cache)
    if self.draft.cross:
      read_BTD = self.cross_norm(x_BTD) if self.draft.cross_norm else x_BTD
      x_BTD = x_BTD + sum(cross(read_BTD, rotations, seen_BT, target) for cross in self.crosses)
    return self.mlp_block(x_BTD, x_BTD), cache


class Draft(nn.Module):
  """Embedding, layers, final norm and output layer of the draft; see the module's docstring."""

  config: GlideConfig

  def setup(self):
    c, init, stack = self.config, initializers(self.config.stack), self.config.stack
    if c.embedding == 'own':
      self.embed = nn.Embed(c.vocab_size, c.model_dim, dtype=c.dtype, embedding_init=init.embedding)
      self.head = self.param('head', init.head, (c.model_dim, c.num_predicted), jnp.float32)
    else:
      E = c.target.model.model_dim
      # With equal widths, the draft starts in the space of the target's embeddings. It does not end there: with tied embeddings, it would
      # at first predict each token to be followed by itself.
      matrix = (lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)) if E == c.model_dim else init.matrix
      self.embed_in = Dense((E,), (c.model_dim,), False, c.dtype, matrix)
      self.embed_out = Dense((c.model_dim,), (E,), False, c.dtype, init.matrix)
    if c.draft == 'parallel':
      self.mask_embedding = self.param('mask_embedding', nn.initializers.normal(0.02), (c.model_dim,), jnp.float32)
    self.layers = [DraftBlock(stack, i, c, name=f'layer_{i}') for i in range(c.num_layers)]
    self.final_norm = norm(stack, 'final_norm')

  def embedded(self, tokens_BT, masked_BT, shared: Shared | None):
    """Returns the input of the first layer; tokens in `masked` are mask tokens."""
    c = self.config
    if c.embedding == 'own':
      x_BTD = self.embed(tokens_BT)
    else:
      t, embedding = c.target.model, shared.embedding
      x_BTE = embedding[tokens_BT].astype(c.dtype)
      x_BTD = self.embed_in(x_BTE * jnp.asarray(t.model_dim**0.5, c.dtype) if t.scaled_embeddings else x_BTE)
    if masked_BT is None:
      return x_BTD
    return jnp.where(masked_BT[:, :, None], self.mask_embedding.astype(c.dtype)[None, None], x_BTD)

  def __call__(self, tokens_BT, positions_BT, seen_BT, cache, target, length, masked_BT, shared):
    c, rotations = self.config, None
    scheme = rope.rotations(c.stack, positions_BT, length), None
    if c.cross and c.target.model.position == 'rope':
      rotations = rope.rotations(c.target.model, positions_BT + num_before(c), length)
    x_BTD = self.embedded(tokens_BT, masked_BT, shared)
    for layer in self.layers:
      x_BTD, cache = layer(x_BTD, positions_BT, scheme, cache, rotations, seen_BT, target)
    x_BTD = self.final_norm(x_BTD)
    return x_BTD if c.embedding == 'own' else self.embed_out(x_BTD), cache


def cross_names(config: GlideConfig) -> list[str]:
  """Returns the names of the cross-attentions in the parameters of each layer of the draft."""
  return ['cross', *(f'cross_{i}' for i in range(1, len(config.layers_of(0))))] if config.cross else []


def num_before(config: GlideConfig) -> int:
  """Returns the number of tokens in the target's cache before the first token of a text: 1 if it has a sink token, else 0."""
  return int(config.target.model.sink.kind == 'token')


def shared_arrays(config: GlideConfig, target_params: Any) -> Shared | None:
  """Returns the arrays of the target that the draft uses, which get no gradient; None if it uses none.

  Raises:
    ValueError: the draft uses some, and `target_params` is None.
  """
  if config.embedding == 'own':
    return None
  if target_params is None:
    raise ValueError("A draft with embedding='target' needs the parameters of its target: pass target_params.")
  target, embedding = config.target.model, target_params['embed']['embedding']
  if target.tied_embeddings:
    # Rows are cut off before the transposition: a cut through the columns would copy the matrix for each drafted token.
    head = embedding[: config.num_predicted].T
  else:
    head = functions.output_matrix(target_params, target)[:, : config.num_predicted]
  return jax.lax.stop_gradient(Shared(embedding, head))


def hidden(
  config: GlideConfig,
  params: Any,
  tokens: Int[Array, 'B T'],
  positions: Int[Array, 'B T'],
  seen: Int[Array, 'B T'],
  cache: caches.Cache,
  target: caches.Readable | None,
  *,
  length: Int[Array, ' B'] | int,
  masked: Bool[Array, 'B T'] | None = None,
  target_params: Any = None,
) -> tuple[Float[Array, 'B T E'], Any]:
  """Returns (states to be multiplied by `output_matrix`, the extended cache of the draft).

  Args:
    params: parameters of the draft, as `init_params` returns them.
    tokens: int32 token ids.
    positions: int32 position of each token in its text; they rise by one along T.
    seen: int32 number of the target's tokens that each token sees: those at positions below it. Where it is 0, the
      cross-attention returns 0.
    cache: the draft's own cache.
    target: the cache of the target, or the keys and values that `target_reads` returns. It is only read (None: the draft has no
      cross-attention).
    length: final number of tokens of each text, used only by dynamic RoPE scaling of the target.
    masked: tokens that are read as mask tokens, for draft='parallel' (None: none).
    target_params: parameters of the target, which embedding='target' needs.

  Raises:
    ValueError: embedding='target', and there are no `target_params`.
  """
  shared = shared_arrays(config, target_params)
  return Draft(config).apply({'params': params}, tokens, positions, seen, cache, target, length, masked, shared)


def output_matrix(config: GlideConfig, params: Any, target_params: Any = None) -> Float[Array, 'E C']:
  """Returns the matrix of the output layer in the parameters' dtype: the draft's own, or with embedding='target' the target's.

  Its columns are the C = `num_predicted` tokens that the draft can predict. Raises as `hidden` does.
  """
  if config.embedding == 'own':
    return params['head']
  return shared_arrays(config, target_params).head


def logits(
  config: GlideConfig, params: Any, hidden: Float[Array, '... E'], target_params: Any = None
) -> Float[Array, '... V']:
  """Returns the float32 logits of the states that `hidden` returns, -inf for tokens that the draft cannot predict.

  Raises as `hidden` does.
  """
  matrix = output_matrix(config, params, target_params).astype(config.dtype)
  found = cap(jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32), config.logit_softcap)
  rest = config.vocab_size - config.num_predicted
  return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, rest)], constant_values=-jnp.inf) if rest else found


def init_params(config: GlideConfig, key) -> Any:
  """Returns new float32 parameters of a draft. They hold none of the target's."""
  t, one = config.target.model, jnp.zeros((1, 1), jnp.int32)
  # Reading no token of an empty cache needs no target.
  slots = caches.Slots.ring(t, 1, recent=1)
  shared = Shared(jnp.zeros((t.vocab_size, t.model_dim)), jnp.zeros((t.model_dim, t.vocab_size)))
  reads = caches.LayeredCache((slots,) * t.num_layers)
  masked = jnp.ones((1, 1), bool) if config.draft == 'parallel' else None
  return Draft(config).init(key, one, one, one, caches.Sequence(), reads, 1, masked, shared)['params']


def abstract_params(config: GlideConfig) -> Any:
  """Returns the parameters' shapes and dtypes without computing anything."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
