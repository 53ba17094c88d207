"""The non-autoregressive encoder-decoder: all target tokens are predicted at once.

  log p(Y | X) = log p(T | X) + sum_t log p_t(y_t | X)

Encoder and decoder are those of `jaxlm.models.seq2seq`, and each target position sees all others. The length T is predicted as in
Mask-Predict (https://arxiv.org/abs/1904.09324): the encoder reads a token [LEN] before the source, whose state h is compared with
an embedding of each length,

  p(T = n | X) = softmax_n(h . E_n)   for n = 1 ... max_length;   E_0 is the embedding of [LEN].

Cross-attention does not see [LEN]. The decoder reads masks, masks between known tokens (kind cmlm), or copies of the encoder's states.
A decoder with `upsampling` k has k S positions for S source tokens instead of a predicted length, and is trained with CTC.
Memory, logits and output matrix are those of `jaxlm.models.seq2seq`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxlm import caches
from jaxlm.models.blocks import folded
from jaxlm.models.initializers import initializers
from jaxlm.models.seq2seq import DECODER, ENCODER, TARGET_EMBEDDING, Seq2Seq, if_dropped
from jaxlm.seq2seq_config import Seq2SeqConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


class ParallelSeq2Seq(Seq2Seq):
  """Encoder and decoder with their embeddings, and the length classifier; see the module's docstring."""

  def setup(self):
    super().setup()
    c = self.config
    if not c.nat.upsampling:
      init = initializers(c.decoder).embedding
      self.length_embed = nn.Embed(c.max_length + 1, c.model_dim, dtype=c.dtype, embedding_init=init)

  def encode(self, source_BS, lengths_B, key=None):
    x_BSD = self.embedded_source(source_BS, key)
    if self.config.nat.upsampling:
      return self.encoder(x_BSD, lengths_B, folded(key, ENCODER)), None
    length_B1D = self.length_embed(jnp.zeros((len(source_BS), 1), jnp.int32))
    # Encoder layers know positions from the embeddings alone, so a token before the others does not shift them.
    x_BSD = self.encoder(jnp.concatenate([length_B1D, x_BSD], axis=1), lengths_B + 1, folded(key, ENCODER))
    table_ND = self.length_embed.embedding.astype(jnp.float32)
    scores_BN = jnp.matmul(x_BSD[:, 0].astype(jnp.float32), table_ND.T, precision=jax.lax.Precision.HIGHEST)
    return x_BSD[:, 1:], jax.nn.log_softmax(scores_BN.at[:, 0].set(-jnp.inf))

  def decode_at_once(self, inputs, lengths_B, memory, key=None):
    positions_BT = jnp.broadcast_to(jnp.arange(inputs.shape[1], dtype=jnp.int32), inputs.shape[:2])
    cache = caches.Sequence((positions_BT < lengths_B[:, None]).astype(jnp.int32))
    if jnp.issubdtype(inputs.dtype, jnp.integer):
      return self.decode(inputs, memory, positions_BT, cache, key)[0]
    learned = self.position_embed if self.config.position == 'learned' else None
    y_BTD = self._placed(inputs, learned, positions_BT, key, TARGET_EMBEDDING)
    return self.decoder(y_BTD, positions_BT, cache, memory, folded(key, DECODER))[0]

  def __call__(self, source_BS, source_lengths_B, inputs, lengths_B, key=None):
    states_BSD, _ = self.encode(source_BS, source_lengths_B, key)
    memory = self.memory(states_BSD, source_lengths_B)
    return self.logits(self.decode_at_once(inputs, lengths_B, memory, key))


def _apply(params, config, method, *args):
  return ParallelSeq2Seq(config).apply({'params': params}, *args, method=method)


def encode(
  params: Any, config: Seq2SeqConfig, source: Int[Array, 'B S'], lengths: Int[Array, ' B'], key: Array | None = None
) -> tuple[Float[Array, 'B S D'], Float[Array, 'B N'] | None]:
  """Returns (the encoder's states, float32 log-probabilities of the target lengths 0 ... max_length, of which 0 is impossible).

  The log-probabilities are None for a model with upsampling. The arguments are those of `jaxlm.models.seq2seq.encode`.
  """
  return _apply(params, config, ParallelSeq2Seq.encode, source, lengths, if_dropped(config, key))


def unknown_targets(
  config: Seq2SeqConfig,
  states: Float[Array, 'B S D'],
  source_lengths: Int[Array, ' B'],
  lengths: Int[Array, ' B'],
  positions: int,
) -> Int[Array, 'B T'] | Float[Array, 'B T D']:
  """Returns the decoder's inputs when no target token is known: mask ids, or copies of the encoder's states.

  Args:
    states: of the sources, from `encode`.
    source_lengths, lengths: int32 tokens of each source, and of each target.
    positions: T, at least the longest of `lengths`.
  """
  if config.nat.decoder_input == 'mask':
    return jnp.full((len(states), positions), config.mask_id, jnp.int32)
  return uniform_copy(states, source_lengths, lengths, positions)


def uniform_copy(
  states: Float[Array, 'B S D'], source_lengths: Int[Array, ' B'], lengths: Int[Array, ' B'], positions: int
) -> Float[Array, 'B T D']:
  """Returns at position i of `positions` the state of the source token round(i S / T), of S source and T target tokens.

  Halves are rounded up. Positions after a target's last repeat the state of its source's last token.
  """
  place_1T, lengths_B1 = jnp.arange(positions)[None], jnp.maximum(lengths, 1)[:, None]
  # round(i S / T) = floor((2 i S + T) / 2 T), in whole numbers.
  source_BT = (2 * place_1T * source_lengths[:, None] + lengths_B1) // (2 * lengths_B1)
  source_BT = jnp.clip(source_BT, 0, source_lengths[:, None] - 1)
  return jnp.take_along_axis(states, source_BT[..., None], axis=1)


def hidden(
  params: Any,
  config: Seq2SeqConfig,
  inputs: Int[Array, 'B T'] | Float[Array, 'B T D'],
  lengths: Int[Array, ' B'],
  memory: Any,
  key: Array | None = None,
) -> Float[Array, 'B T D']:
  """Returns the decoder's states after the final norm, in the config's dtype; those of padding have no meaning.

  Args:
    params, config, key: as for `encode`.
    inputs: of `unknown_targets`; or int32 target ids, with `config.mask_id` for those that are unknown.
    lengths: int32 tokens of each target; positions after them are seen by no other.
    memory: of the sources, from `jaxlm.models.seq2seq.memory`.
  """
  return _apply(params, config, ParallelSeq2Seq.decode_at_once, inputs, lengths, memory, if_dropped(config, key))


def init_params(config: Seq2SeqConfig, key: Array) -> Any:
  """Returns float32 parameters; the same values on any number of devices."""
  one, length = jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32)
  return ParallelSeq2Seq(config).init(key, one, length, one, length)['params']


def abstract_params(config: Seq2SeqConfig) -> Any:
  """Returns the parameters' shapes and dtypes without computing anything."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
