"""Training views of a GliDe draft: each token sees what it sees when it is drafted.

Drafting in rounds, the draft reads the text and then a block of at most `block` drafted tokens. All tokens of a block see the keys and
values of the target for the tokens before the block, since these are verified. So in training, with the phase f of a row and the
block length B, the token at position i is in a block that starts at

  b(i) = max(0, floor((i + f) / B) B - f)

and sees the target's tokens j < b(i). The draft's own keys and values of tokens before the block are those of tokens of the text,
each of which saw the target's tokens before itself; within the block they are those of drafted tokens. In a draft with one layer both
are the same, as they are made of the embeddings, and one pass computes everything. Otherwise a first pass reads the text, and a
second one reads all blocks beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm import caches
from jaxlm.attention.attend import attend
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.recorded import Recorder
from jaxlm.caches.rows import heads_first
from jaxlm.config import ModelConfig
from jaxlm.glide_config import GlideConfig
from jaxlm.models import functions, glide

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


def target_reads(
  target_config: ModelConfig,
  target_params: Any,
  tokens: Int[Array, 'B T'],
  layers: tuple[int, ...],
  mask: Bool[Array, 'B T'] | None = None,
) -> tuple[caches.LayeredCache, Float[Array, 'B T E']]:
  """Returns (keys and values of the target's layers `layers`, its states after the final norm); neither has a gradient.

  Under jit, layers above the last one that is read are not computed unless the states are used: for example for distillation, whose
  target logits are `functions.logits(target_params, target_config, states)`.

  Args:
    tokens: int32 ids of B texts from their first token on, padded on the right.
    layers: `GlideConfig.target_layers`.
    mask: tokens that are not padding (None: all).
  """
  target_params = jax.lax.stop_gradient(target_params)
  config = target_config.replace(remat='none')
  segments = None if mask is None else mask.astype(jnp.int32)
  recorder = Recorder(caches.Sequence(segments), tuple(layers))
  states_BTE, recorder = functions.hidden(target_params, config, tokens, cache=recorder)
  return recorder.cache(config.num_layers, mask), states_BTE


def kept_reads(target_config: ModelConfig, layers: dict[int, tuple[jax.Array, jax.Array]]) -> caches.LayeredCache:
  """Returns keys and values [B, K, S, H] of some layers as `target_reads` returns them, in the target's dtype."""

  def memory(keys_BKSH, values_BKSH):
    B, _, S, _ = keys_BKSH.shape
    positions_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    cast = lambda x: x.astype(target_config.dtype)
    return caches.Slots(cast(keys_BKSH), cast(values_BKSH), positions_BS, jnp.zeros(B, jnp.int32))

  return caches.LayeredCache(
    tuple(memory(*layers[i]) if i in layers else None for i in range(target_config.num_layers))
  )


def block_starts(config: GlideConfig, phase: Int[Array, ' B'], length: int) -> Int[Array, 'B T']:
  """Returns b(i) for each position of T = `length`; see the module's docstring. `phase`: int32 in [0, block)."""
  index_1T, phase_B1 = jnp.arange(length)[None], phase[:, None]
  return jnp.maximum((index_1T + phase_B1) // config.block * config.block - phase_B1, 0)


def training_states(
  config: GlideConfig,
  params: Any,
  tokens: Int[Array, 'B T'],
  reads: caches.Readable | None,
  phase: Int[Array, ' B'],
  mask: Bool[Array, 'B T'] | None = None,
  target_params: Any = None,
) -> Float[Array, 'B T E']:
  """Returns states whose products with `glide.output_matrix` are the draft's logits; those at position i predict token i + 1.

  With draft='parallel', the first token of each block is read, the other tokens of the block are mask tokens, and each position still
  has one prediction. Draw the phase of each row anew in every step, so that each position gets every place in a block.

  Args:
    params: parameters of the draft.
    tokens: int32 ids of B texts from their first token on, padded on the right.
    reads: what `target_reads` returns for these texts (None: the draft has no cross-attention).
    phase: int32 phase of the blocks of each row, in [0, block).
    mask: tokens that are not padding (None: all).
    target_params: parameters of the target, which embedding='target' needs.

  Raises:
    ValueError: embedding='target', and there are no `target_params`.
  """
  B, T = tokens.shape
  index_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
  start_BT = block_starts(config, phase, T)
  seen_BT = start_BT
  if config.first_block == 'causal':
    seen_BT = jnp.where(start_BT == 0, index_BT + 1, start_BT)
  text = caches.Sequence(None if mask is None else mask.astype(jnp.int32))
  read = lambda seen, cache, masked=None: glide.hidden(
    config, params, tokens, index_BT, seen, cache, reads, length=T, masked=masked, target_params=target_params
  )
  if one_pass(config):
    return read(seen_BT, text)[0]
  _, recorder = read(index_BT, Recorder(text, tuple(range(config.num_layers))))
  masked_BT = index_BT > start_BT if config.draft == 'parallel' else None
  return read(seen_BT, BlocksBesideText(recorder.keys, recorder.values, start_BT, mask), masked_BT)[0]


def one_pass(config: GlideConfig) -> bool:
  """Returns whether drafted tokens and tokens of the text have the same keys and values, or the authors' code takes them for the same."""
  if config.draft == 'parallel':
    return False
  return config.num_layers == 1 or not config.cross or config.eval_mask == 'paper'


def training_logits(
  config: GlideConfig, params: Any, tokens, reads, phase, mask=None, target_params: Any = None
) -> Float[Array, 'B T V']:
  """Returns the float32 logits of `training_states`, for small vocabularies; arguments and errors are the same."""
  states_BTE = training_states(config, params, tokens, reads, phase, mask, target_params)
  return glide.logits(config, params, states_BTE, target_params)


@struct.dataclass
class BlocksBesideText:
  """A cache for the second pass: each token sees the text before its block, and its block up to itself."""

  keys: tuple[jax.Array, ...]  # of the text, per layer [B, T, K, H]
  values: tuple[jax.Array, ...]  # of the text, per layer [B, T, K, H]
  starts: jax.Array  # [B, T] int32, the first position of each token's block
  mask: jax.Array | None = None  # [B, T] bool: tokens that are not padding; None: all

  @property
  def fresh(self) -> bool:
    return True

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    both = lambda text, new: heads_first(jnp.concatenate([text, new], axis=1))
    in_block_BTT = positions[:, None] >= self.starts[:, :, None]
    mask_BTS = jnp.concatenate([~in_block_BTT, in_block_BTT], axis=2)
    if self.mask is not None:
      mask_BTS &= jnp.concatenate([self.mask, self.mask], axis=1)[:, None]
    k_positions = jnp.concatenate([positions, positions], axis=1)
    keys, values = both(self.keys[layer], k), both(self.values[layer], v)
    return attend(q, keys, values, positions, k_positions, rule, mask_BTS), self
