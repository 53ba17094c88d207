"""The encoder-decoder transformer (https://arxiv.org/abs/1706.03762), and its decoder of Markov order k.

  encoder  x = x + attention(norm(x));  x = x + mlp(norm(x))
  decoder  y = y + attention(norm(y));  y = y + cross(norm(y), encoded);  y = y + mlp(norm(y));  logits = y E^T

With `markov_order` k, attention sees the last k target tokens. That alone lets L layers see L (k - 1) + 1 tokens, since keys and
values of higher layers hold what lower ones saw. The mode 'transparent' makes the keys and values of every layer of the embeddings
e, which hold one token each, so that a prediction depends on exactly k tokens (https://arxiv.org/abs/2402.02084):

  a_n = sum_{0 <= n-m < k} softmax_m(q(y_n) . k(norm(e_m)) / sqrt(H)) v(norm(e_m))

The mode 'unroll' is the other exact one: an ordinary decoder reads the last k tokens anew for each prediction, so that higher layers
hold what lower ones saw, of these k tokens. Its state is the k ids, which is enough for every exact mode (`caches.RecentTokens`).

The source is encoded once (`encode`); `memory` makes of it the keys and values of every layer's cross-attention, which are only
read. Self-attention is whatever the cache makes of it, as in `jaxlm.models.transformer`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxlm import caches
from jaxlm.attention.distance import BUCKETS
from jaxlm.attention.positions import sinusoids
from jaxlm.caches.rows import heads_first
from jaxlm.caches.slots import everything_of
from jaxlm.models import markov
from jaxlm.models.blocks import ATTENTION_OUTPUT, ATTENTION_WEIGHTS, Attention, Block, dropped_at, folded, norm
from jaxlm.models.initializers import initializers
from jaxlm.models.transformer import REMAT_POLICIES
from jaxlm.seq2seq_config import Seq2SeqConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

# Places of a decoder layer whose numbers are dropped, beside those of `jaxlm.models.blocks`.
CROSS_WEIGHTS, CROSS_OUTPUT = 4, 5
# Numbers that tell the keys of encoder, decoder and their embeddings apart.
ENCODER, DECODER, SOURCE_EMBEDDING, TARGET_EMBEDDING = range(4)


class DecoderBlock(Block):
  """A layer of the decoder: self-attention, cross-attention, MLP."""

  model: Seq2SeqConfig

  def setup(self):
    super().setup()
    c = self.config
    if self.model.reads_embeddings:
      self.embedding_norm = norm(c, 'embedding_norm')
    self.cross_norm = norm(c, 'cross_norm')
    self.cross = Attention(self.model.cross, self.layer, name='cross')

  def self_attention(self, y_BTD, embedded_BTD, positions_BT, table, cache, key):
    """Returns (the residual stream after self-attention, the extended cache). `table`: of relative positions, or None."""
    if not self.model.reads_embeddings:
      return self.attention_block(y_BTD, positions_BT, (None, table), cache, key)
    c, attention = self.config, self.attention
    q_BTNH = attention.project_queries(self.attention_input(y_BTD), None)
    k_BTNH, v_BTNH = attention.project_keys_values(self.embedding_norm(embedded_BTD), None)
    rule = attention.rule(table, folded(key, ATTENTION_WEIGHTS))
    out_BTNH, cache = cache.attend(self.layer, q_BTNH, k_BTNH, v_BTNH, positions_BT, rule)
    y_BTD = y_BTD + dropped_at(attention.mix(out_BTNH), c.dropout.residual, key, ATTENTION_OUTPUT)
    return self.attention_norm(y_BTD) if c.norm_placement == 'post' else y_BTD, cache

  def cross_block(self, y_BTD, positions_BT, memory, key):
    """Returns the residual stream after cross-attention."""
    c, post = self.config, self.config.norm_placement == 'post'
    q_BTNH = self.cross.project_queries(y_BTD if post else self.cross_norm(y_BTD), None)
    out_BTNH = memory.read(self.layer, q_BTNH, positions_BT, self.cross.rule(None, folded(key, CROSS_WEIGHTS)))
    y_BTD = y_BTD + dropped_at(self.cross.mix(out_BTNH), c.dropout.residual, key, CROSS_OUTPUT)
    return self.cross_norm(y_BTD) if post else y_BTD

  def __call__(self, y_BTD, embedded_BTD, positions_BT, table, cache, memory, key=None):
    y_BTD, cache = self.self_attention(y_BTD, embedded_BTD, positions_BT, table, cache, key)
    y_BTD = self.cross_block(y_BTD, positions_BT, memory, key)
    return self.mlp_block(y_BTD, y_BTD, key), cache


class Encoder(nn.Module):
  """The encoder's layers."""

  model: Seq2SeqConfig

  def setup(self):
    c = self.model.encoder
    block = _remat(Block, c)
    self.layers = [block(c, i, name=f'layer_{i}') for i in range(c.num_layers)]
    if c.norm_placement != 'post':
      self.final_norm = norm(c, 'final_norm')

  def __call__(self, x_BSD, lengths_B, key=None):
    positions_BS = jnp.broadcast_to(jnp.arange(x_BSD.shape[1], dtype=jnp.int32), x_BSD.shape[:2])
    cache = caches.Sequence((positions_BS < lengths_B[:, None]).astype(jnp.int32))
    for i, layer in enumerate(self.layers):
      x_BSD, _ = layer(x_BSD, positions_BS, (None, None), cache, folded(key, i))
    return x_BSD if self.model.norm_placement == 'post' else self.final_norm(x_BSD)


class Decoder(nn.Module):
  """The decoder's layers."""

  model: Seq2SeqConfig

  def setup(self):
    c = self.model.decoder
    block = _remat(DecoderBlock, c)
    self.layers = [block(c, i, self.model, name=f'layer_{i}') for i in range(c.num_layers)]
    # One table for all layers, as in T5: the simplest of the learned schemes by distance, and the one that decoder-only models have.
    self.distance_table = None
    if c.position == 'relative_t5':
      self.distance_table = self.param(
        'distance_table', nn.initializers.normal(0.02), (c.num_heads, BUCKETS), jnp.float32
      )
    if c.norm_placement != 'post':
      self.final_norm = norm(c, 'final_norm')

  def memory(self, encoded_BSD, lengths_B):
    """Returns the keys and values of each layer's cross-attention."""
    layers = []
    for layer in self.layers:
      k_BSNH, v_BSNH = layer.cross.project_keys_values(encoded_BSD, None)
      layers.append(everything_of(heads_first(k_BSNH), heads_first(v_BSNH), lengths_B))
    return caches.LayeredCache(tuple(layers))

  def __call__(self, y_BTD, positions_BT, cache, memory, key=None):
    embedded_BTD = y_BTD
    for i, layer in enumerate(self.layers):
      y_BTD, cache = layer(y_BTD, embedded_BTD, positions_BT, self.distance_table, cache, memory, folded(key, i))
    return y_BTD if self.model.norm_placement == 'post' else self.final_norm(y_BTD), cache


class Seq2Seq(nn.Module):
  """Encoder and decoder with their embeddings; see the module's docstring."""

  config: Seq2SeqConfig

  def setup(self):
    c, init = self.config, initializers(self.config.decoder)
    embed = lambda rows: nn.Embed(rows, c.model_dim, dtype=c.dtype, embedding_init=init.embedding)
    self.embed = embed(c.vocab_size)
    if c.embeddings != 'shared':
      self.source_embed = embed(c.source_vocab_size or c.vocab_size)
    if c.embeddings == 'separate':
      self.head = self.param('head', init.head, (c.model_dim, c.vocab_size), jnp.float32)
    if c.position == 'learned':
      self.source_position_embed, self.position_embed = embed(c.max_length), embed(c.target_positions)
    if c.output_bias:
      self.output_bias = self.param('output_bias', nn.initializers.zeros, (c.vocab_size,), jnp.float32)
    self.encoder, self.decoder = Encoder(c), Decoder(c)

  def _embedded(self, table, position_table, tokens_BT, positions_BT, key, place):
    c = self.config
    x_BTD = table(tokens_BT)
    if c.scaled_embeddings:
      x_BTD = x_BTD * jnp.asarray(c.model_dim**0.5, x_BTD.dtype)
    return self._placed(x_BTD, position_table, positions_BT, key, place)

  def _placed(self, x_BTD, position_table, positions_BT, key, place):
    """Returns a decoder's or encoder's inputs with their positions added, after dropout."""
    c = self.config
    relative = c.position == 'relative' and place == TARGET_EMBEDDING
    if c.position == 'learned':
      x_BTD = x_BTD + position_table(positions_BT)
    elif not relative:
      x_BTD = x_BTD + sinusoids(positions_BT, c.model_dim).astype(c.dtype)
    return dropped_at(x_BTD, c.dropout.residual, key, place)

  def embedded_source(self, source_BS, key=None):
    c = self.config
    table = self.embed if c.embeddings == 'shared' else self.source_embed
    positions_BS = jnp.broadcast_to(jnp.arange(source_BS.shape[1], dtype=jnp.int32), source_BS.shape)
    learned = self.source_position_embed if c.position == 'learned' else None
    return self._embedded(table, learned, source_BS, positions_BS, key, SOURCE_EMBEDDING)

  def encode(self, source_BS, lengths_B, key=None):
    return self.encoder(self.embedded_source(source_BS, key), lengths_B, folded(key, ENCODER))

  def memory(self, encoded_BSD, lengths_B):
    return self.decoder.memory(encoded_BSD, lengths_B)

  def decode(self, tokens_BT, memory, positions_BT=None, cache=None, key=None):
    if positions_BT is None:
      positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    cache = markov.cache_for(self.config, cache, len(tokens_BT))
    if isinstance(cache, caches.RecentTokens):
      return self._reread(tokens_BT, memory, positions_BT, cache, key)
    y_BTD = self._embedded_target(tokens_BT, positions_BT, key)
    return self.decoder(y_BTD, positions_BT, cache, memory, folded(key, DECODER))

  def _embedded_target(self, tokens_BT, positions_BT, key):
    learned = self.position_embed if self.config.position == 'learned' else None
    return self._embedded(self.embed, learned, tokens_BT, positions_BT, key, TARGET_EMBEDDING)

  def _reread(self, tokens_BT, memory, positions_BT, cache, key):
    """Returns what `decode` does: the last state of the decoder on each window of k tokens, which is a row of R = B T."""
    B, T = tokens_BT.shape
    ids_Rk, positions_Rk, there_Rk, cache = markov.windows(tokens_BT, positions_BT, cache)
    y_RkD = self._embedded_target(ids_Rk, positions_Rk, key)
    alone, shared = caches.Sequence(there_Rk.astype(jnp.int32)), caches.Shared(memory, T)
    y_RkD, _ = self.decoder(y_RkD, positions_Rk, alone, shared, folded(key, DECODER))
    return y_RkD[:, -1].reshape(B, T, -1), cache

  def output_matrix(self):
    return self.head if self.config.embeddings == 'separate' else self.embed.embedding.T

  def logits(self, hidden):
    matrix = self.output_matrix().astype(self.config.dtype)
    raw = jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32)
    if not self.config.output_bias:
      return raw
    return raw + self.output_bias.astype(jnp.float32).reshape((1,) * (raw.ndim - 1) + (-1,))

  def __call__(self, source_BS, lengths_B, tokens_BT, key=None):
    memory = self.memory(self.encode(source_BS, lengths_B, key), lengths_B)
    return self.logits(self.decode(tokens_BT, memory, key=key)[0])


def _remat(block, config):
  return block if config.remat == 'none' else nn.remat(block, prevent_cse=True, policy=REMAT_POLICIES[config.remat])


def _apply(params, config, method, *args):
  return Seq2Seq(config).apply({'params': params}, *args, method=method)


def encode(
  params: Any, config: Seq2SeqConfig, source: Int[Array, 'B S'], lengths: Int[Array, ' B'], key: Array | None = None
) -> Float[Array, 'B S D']:
  """Returns the encoder's states of sources, in the config's dtype; those of padding have no meaning.

  Args:
    params: of the model, as `init_params` makes them.
    config: the model's.
    source: int32 token ids, padded on the right with any id.
    lengths: int32 tokens of each source.
    key: random key for dropout in training; None drops nothing.
  """
  return _apply(params, config, Seq2Seq.encode, source, lengths, if_dropped(config, key))


def memory(
  params: Any, config: Seq2SeqConfig, encoded: Float[Array, 'B S D'], lengths: Int[Array, ' B']
) -> caches.LayeredCache:
  """Returns what the decoder's cross-attention reads of the encoded sources: keys and values of every decoder layer."""
  return _apply(params, config, Seq2Seq.memory, encoded, lengths)


def hidden(
  params: Any,
  config: Seq2SeqConfig,
  tokens: Int[Array, 'B T'],
  memory: caches.LayeredCache,
  positions: Int[Array, 'B T'] | None = None,
  cache: Any = None,
  key: Array | None = None,
) -> tuple[Float[Array, 'B T D'], Any]:
  """Returns (the decoder's states after the final norm in the config's dtype, the extended cache).

  Args:
    params, config, key: as for `encode`.
    tokens: int32 target ids, the first of them `config.start_id`.
    memory: of the sources, from the function of this name.
    positions: int32 position of each token; 0, 1, ... when None.
    cache: of `empty_cache`, or `caches.RecentTokens` of k ids, from which every model of exact order k can decode; None: the
      states depend on the tokens given alone.

  With markov_mode='unroll' or `caches.RecentTokens` the decoder reads B T rows of k tokens, and a training step keeps k times the
  activations of the other modes: take smaller batches, or `remat`.

  Raises:
    ValueError: the cache does not fit the model; see `jaxlm.models.markov.cache_for`.
  """
  return _apply(params, config, Seq2Seq.decode, tokens, memory, positions, cache, if_dropped(config, key))


def logits(params: Any, config: Seq2SeqConfig, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
  """Returns the float32 logits of decoder states."""
  return _apply(params, config, Seq2Seq.logits, hidden)


def output_matrix(params: Any, config: Seq2SeqConfig) -> Float[Array, 'D V']:
  """Returns the matrix of the output layer, float32 as the parameters are; a model with `output_bias` adds that too."""
  return _apply(params, config, Seq2Seq.output_matrix)


def if_dropped(config: Seq2SeqConfig, key):
  """Returns the key, or None for a model without dropout."""
  return key if any(dataclasses.astuple(config.dropout)) else None


def empty_cache(config: Seq2SeqConfig, batch: int, capacity: int) -> Any:
  """Returns an empty cache of the decoder's self-attention: of `capacity` tokens, or of the last k of a model of Markov order k.

  With markov_mode='unroll' it holds the k ids, else keys and values.
  """
  if config.rereads:
    return caches.RecentTokens.create(batch, config.markov_order)
  if config.markov_order:
    layers = [
      caches.Slots.ring(config.decoder, batch, recent=config.decoder.window(i)) for i in range(config.decoder_layers)
    ]
    return caches.LayeredCache(tuple(layers))
  return caches.FullCache.create(config.decoder, batch, capacity)


def init_params(config: Seq2SeqConfig, key: Array) -> Any:
  """Returns float32 parameters; the same values on any number of devices."""
  one = jnp.zeros((1, 1), jnp.int32)
  return Seq2Seq(config).init(key, one, jnp.ones(1, jnp.int32), one)['params']


def abstract_params(config: Seq2SeqConfig) -> Any:
  """Returns the parameters' shapes and dtypes without computing anything."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
