"""The transformer of all supported families: Llama, Mistral, Qwen, Gemma, GPT-2, GPT-NeoX, OPT. With causal=False, an encoder.

  x = x + attention(norm(x));  x = x + mlp(norm(x));  logits = head(norm(x))

or both from the same x (`parallel_residual`). Layers are unrolled (`layer_0`, `layer_1`, ...). The cache computes attention from
(layer, q, k, v): training passes `caches.Sequence`, decoding a cache that grows. `jaxlm.models.functions` has the methods as
pure functions of the parameters.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxlm import caches
from jaxlm.attention.distance import BUCKETS
from jaxlm.attention.positions import rotations, sinusoids
from jaxlm.config import ModelConfig
from jaxlm.models.blocks import Block, dropped_at, folded, norm
from jaxlm.models.initializers import initializers

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


REMAT_POLICIES = {'full': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Transformer(nn.Module):
  """Embedding, a stack of layers and an output layer; see the module's docstring."""

  config: ModelConfig

  def setup(self):
    c, init = self.config, initializers(self.config)
    self.embed = nn.Embed(c.vocab_size, c.model_dim, dtype=c.dtype, embedding_init=init.embedding)
    before = int(c.sink.kind == 'token')
    if before:
      self.sink_token = self.param('sink_token', nn.initializers.normal(0.02), (c.model_dim,), jnp.float32)
    if c.position == 'learned':
      length = c.max_length + before
      self.position_embed = nn.Embed(length, c.model_dim, dtype=c.dtype, embedding_init=init.embedding)
    if c.embedding_norm:
      self.embedding_norm = norm(c, 'embedding_norm')
    if c.position == 'relative_t5':  # One table for all layers, as in T5.
      self.distance_table = self.param(
        'distance_table', nn.initializers.normal(0.02), (c.num_heads, BUCKETS), jnp.float32
      )
    block = Block
    if c.remat != 'none':
      block = nn.remat(Block, prevent_cse=True, policy=REMAT_POLICIES[c.remat])
    self.layers = [block(c, i, name=f'layer_{i}') for i in range(c.num_layers)]
    if c.norm_placement != 'post':
      self.final_norm = norm(c, 'final_norm')
    if not c.tied_embeddings:
      self.head = self.param('head', init.head, (c.model_dim, c.vocab_size), jnp.float32)

  def hidden(
    self,
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'] | None = None,
    cache: Any = None,
    length=None,
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], Any]:
    """Returns (states after the final norm, the extended cache).

    Args:
      tokens: token ids.
      positions: position of each token (None: 0, 1, ...).
      cache: a `caches.Cache` (None: `caches.Sequence()`).
      length: [B] final number of tokens of each sequence, used only by dynamic RoPE scaling (None: T).
      key: random key for dropout in training (None: no dropout, for evaluation and decoding).
    """
    states, cache = self.states(tokens, positions, cache, length, key)
    return self.normed(states[-1])[:, -tokens.shape[1] :], cache

  def normed(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
    """Returns the states after the final norm, if there is one."""
    return x if self.config.norm_placement == 'post' else self.final_norm(x)

  def states(
    self, tokens, positions=None, cache=None, length=None, key=None
  ) -> tuple[list[Float[Array, 'B T D']], Any]:
    """Returns (the residual stream before each layer and after the last, the extended cache); arguments as for `hidden`.

    If the model has a sink token and the cache is fresh, there are states of T + 1 tokens.
    """
    cache = caches.Sequence() if cache is None else cache
    x_BTD, positions, scheme = self.embedded(tokens, positions, cache.fresh, length)
    key = key if any(dataclasses.astuple(self.config.dropout)) else None
    states = [dropped_at(x_BTD, self.config.dropout.residual, key, len(self.layers))]
    for i, layer in enumerate(self.layers):
      x_BTD, cache = layer(states[-1], positions, scheme, cache, folded(key, i))
      states.append(x_BTD)
    return states, cache

  def embedded(self, tokens, positions=None, fresh=True, length=None) -> tuple[Float[Array, 'B T D'], Array, Any]:
    """Returns (input of the first layer, positions, position data of all layers).

    The position data are (RoPE's (cos, sin), distance table of relative_t5); each is None if the model does not use it.
    """
    c = self.config
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x_BTD = self.embed(tokens)
    if c.scaled_embeddings:
      x_BTD = x_BTD * jnp.asarray(c.model_dim**0.5, c.dtype)  # Rounded, as the models were trained.
    if c.sink.kind == 'token':
      positions = positions + 1
      if fresh:
        sink_B1D = jnp.broadcast_to(self.sink_token.astype(c.dtype), (x_BTD.shape[0], 1, c.model_dim))
        x_BTD = jnp.concatenate([sink_B1D, x_BTD], axis=1)
        positions = jnp.pad(positions, ((0, 0), (1, 0)))
    if c.position == 'learned':
      x_BTD = x_BTD + self.position_embed(positions)
    if c.position == 'sinusoidal':
      x_BTD = x_BTD + sinusoids(positions, c.model_dim).astype(c.dtype)
    if c.embedding_norm:
      x_BTD = self.embedding_norm(x_BTD)
    length = positions.shape[1] if length is None else length
    rotation = rotations(c, positions, length) if c.position == 'rope' else None
    return x_BTD, positions, (rotation, self.distance_table if c.position == 'relative_t5' else None)

  def output_matrix(self) -> Float[Array, 'D V']:
    return self.embed.embedding.T if self.config.tied_embeddings else self.head

  def logits(self, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
    """Returns float32 logits."""
    c = self.config
    return cap(
      jnp.matmul(hidden, self.output_matrix().astype(c.dtype), preferred_element_type=jnp.float32), c.logit_softcap
    )

  def __call__(self, tokens, positions=None, cache=None, length=None, key=None) -> tuple[Float[Array, 'B T V'], Any]:
    """Returns (float32 logits, the extended cache); arguments as for `hidden`."""
    hidden_BTD, cache = self.hidden(tokens, positions, cache, length, key)
    return self.logits(hidden_BTD), cache


def cap(logits, softcap: float | None):
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def init_params(config: ModelConfig, key) -> Any:
  """Returns new float32 parameters. The values do not depend on the number of devices."""
  return Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32))['params']


def abstract_params(config: ModelConfig) -> Any:
  """Returns the parameters' shapes and dtypes without computing anything."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def count_params(params: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(params))
