"""The state of a batch that is decoded, and its compiled steps: the first token, one further token, the loop of plain decoding.

Rows of a batch are padded on the right, and each row advances at its own positions, so a row gets the tokens that it gets alone.
The random key of a token depends on (seed, row, position), so its noise does not depend on the batch size.
"""

import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.sampling import choose
from jaxlm.config import ModelConfig
from jaxlm.models import functions


@struct.dataclass
class DecodeState:
  """Decoding state of R rows. The last token of a row is chosen, but its keys and values are not yet in the cache."""

  tokens: jax.Array  # [R, M] int32, the tokens generated so far, then padding
  last: jax.Array  # [R] int32, the newest token
  position: jax.Array  # [R] int32, its position
  lengths: jax.Array  # [R] int32, tokens generated
  done: jax.Array  # [R] bool
  # [R] bool, whether all logits of the row were finite; if one row is False, all rows are done.
  finite: jax.Array
  keys: jax.Array  # [R] random keys, one per row
  seen: jax.Array | None  # [R, V] bool, tokens of prompt and output, for the repetition penalty
  total: jax.Array  # [R] int32, the length each row may reach
  cache: Any


@functools.partial(jax.jit, static_argnames='samples')
def fan_out(tree, *, samples: int):
  """Repeats each row `samples` times; the copies are neighbours."""
  return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), tree)


@functools.partial(jax.jit, static_argnames='max_new_tokens')
def start(logits_RV, tokens_RT, lengths_R, total_R, keys_R, pad_id, eos_E, values, *, max_new_tokens) -> DecodeState:
  """Chooses the first token of each row. The caller adds the cache afterwards, so that it is not copied here."""
  R, V = logits_RV.shape
  seen = None
  if 'repetition_penalty' in values:
    real_RT = jnp.arange(tokens_RT.shape[1])[None] < lengths_R[:, None]
    seen = jnp.zeros((R, V), bool).at[jnp.arange(R)[:, None], tokens_RT].max(real_RT)
  state = DecodeState(
    tokens=jnp.full((R, max_new_tokens), pad_id, jnp.int32), last=tokens_RT[:, 0], position=lengths_R - 1,
    lengths=jnp.zeros(R, jnp.int32), done=jnp.zeros(R, bool), finite=jnp.ones(R, bool), keys=keys_R, seen=seen, total=total_R, cache=None,
  )  # fmt: skip
  return emit(state, logits_RV, eos_E, values)


def emit(state: DecodeState, logits_RV, eos_E, values) -> DecodeState:
  """Chooses the token after `state.position` of each unfinished row. If logits of a row are not finite, no row gets a token."""
  rows = jnp.arange(logits_RV.shape[0])
  finite = state.finite & (state.done | jnp.isfinite(logits_RV).all(axis=-1))
  state = state.replace(finite=finite, done=state.done | ~finite.all())
  position = state.position + 1
  noise_keys = jax.vmap(jax.random.fold_in)(state.keys, position)
  chosen = choose(logits_RV, noise_keys, state.seen, values)
  next_R = jnp.where(state.done, state.last, chosen)
  # Finished rows write past the end of the buffer; such writes are dropped.
  slot = jnp.where(state.done, state.tokens.shape[1], state.lengths)
  lengths = state.lengths + ~state.done
  return state.replace(
    tokens=state.tokens.at[rows, slot].set(next_R, mode='drop'),
    last=next_R,
    position=jnp.where(state.done, state.position, position),
    lengths=lengths,
    done=state.done | jnp.isin(next_R, eos_E) | (lengths >= state.tokens.shape[1]),
    seen=None if state.seen is None else state.seen.at[rows, next_R].set(True),
  )


@functools.partial(jax.jit, static_argnames=('config',), donate_argnums=(1,))
def decode(params, state: DecodeState, steps, eos_E, values, *, config: ModelConfig) -> tuple[DecodeState, Any]:
  """Takes at most `steps` steps, fewer when every row is done. Returns (state, steps taken)."""

  def unfinished(carry):
    state, taken = carry
    return (taken < steps) & ~jnp.all(state.done)

  def body(carry):
    state, taken = carry
    hidden_R1D, cache = functions.hidden(
      params, config, state.last[:, None], state.position[:, None], state.cache, state.total
    )
    logits_RV = functions.logits(params, config, hidden_R1D[:, 0])
    return emit(state.replace(cache=cache), logits_RV, eos_E, values), taken + 1

  return jax.lax.while_loop(unfinished, body, (state, jnp.int32(0)))


def row_keys(seed: int, first_row: int, rows: int) -> jax.Array:
  return folded(jax.random.key(seed), first_row, rows=rows)


@functools.partial(jax.jit, static_argnames='rows')
def folded(key, first_row, *, rows: int) -> jax.Array:
  return jax.vmap(functools.partial(jax.random.fold_in, key))(first_row + jnp.arange(rows))
