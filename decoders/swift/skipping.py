"""A transformer that skips some sub-layers: a skipped sub-layer, with its norm, is the identity on the residual stream.

Three implementations give the same states:
  static   the set is part of the program: it is fused best, and compiled for each set
  cond     the set is data, and each sub-layer is a branch: one program, which does not compute skipped sub-layers
  mask     the set is data, and skipped sub-layers are computed and discarded: can be mapped over many sets
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.caches.branch import Branch
from jaxlm.config import ModelConfig
from jaxlm.models import functions

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

How = Literal['static', 'cond', 'mask']
AT_ONCE = 1024  # Number of tokens whose logits are in memory at once; those of all sets, rows and tokens would not fit.


def hidden(
  params: Any,
  tokens: Int[Array, 'B T'],
  positions: Int[Array, 'B T'],
  branch: Branch,
  length: Int[Array, ' B'],
  keep,
  config: ModelConfig,
  how: How,
) -> tuple[Float[Array, 'B T D'], Branch]:
  """Returns (states after the final norm, the extended branch).

  Args:
    tokens, positions, length: as for `functions.hidden`.
    branch: a skipped attention does not read its layer of the branch, which may hold anything.
    keep: [2, L] bool, whether attention (row 0) and MLP (row 1) of each layer run; a NumPy array if `how` is static. The first
      and the last layer always run.
  """
  x, positions, scheme = functions.embedded(params, config, tokens, positions, False, length)
  branch = branch.placed(positions)

  def either(runs, sublayer, x, rest):
    """Returns sublayer(x, rest) if it runs, otherwise (x, rest)."""
    if isinstance(runs, bool | np.bool_):
      return sublayer(x, rest) if runs else (x, rest)
    if how == 'cond':
      return jax.lax.cond(runs, sublayer, lambda x, rest: (x, rest), x, rest)
    y, rest = sublayer(x, rest)
    return jnp.where(runs, y, x), rest

  for i in range(config.num_layers):
    layer_params = params[f'layer_{i}']
    runs = (True, True) if i in (0, config.num_layers - 1) else (keep[0, i], keep[1, i])

    # Only the branch's keys and values go through a conditional; a cache that it returned would be copied.
    def attention_block(x, rest, layer_params=layer_params, branch=branch, i=i):
      x, after = functions.attention_block(layer_params, config, i, x, positions, scheme, branch.with_layer(i, *rest))
      return x, (after.keys[i], after.values[i])

    def mlp_block(after, before, layer_params=layer_params, i=i):
      return functions.mlp_block(layer_params, config, i, after, before), before

    before = x
    x, rest = either(runs[0], attention_block, x, (branch.keys[i], branch.values[i]))
    branch = branch.with_layer(i, *rest)
    x, _ = either(runs[1], mlp_block, x, before)
  return functions.normed(params, config, x), branch


def logits(params: Any, states: Float[Array, '... D'], config: ModelConfig) -> Float[Array, '... V']:
  return functions.logits(params, config, states)


@functools.partial(jax.jit, static_argnames=('config', 'window'))
def scores(params, keep_C2L, text_RS, first_R, valid_R, total_R, cache, *, config: ModelConfig, window: int):
  """Returns how well the model predicts a text without the sub-layers of each of C sets: [C] matchness and [C] nearness.

    matchness = 1 / window sum_i [ argmax of the logits after y_i = y_(i+1) ],   i = 0 .. window - 1
    nearness  = 1 / window sum_i p_i(y_(i+1)) / max p_i

  p_i is the distribution after y_i. The tokens y are read in parallel on top of the whole model's cache of the tokens before y_0.
  Scores are averaged over rows.

  Args:
    keep_C2L: as for `hidden`.
    text_RS: tokens at their positions.
    first_R: the position of y_0 in each row.
    valid_R: whether a row counts.
    total_R: as `length` of `hidden`.
    cache: cache of the rows; its tokens from y_0 on are not read.
  """
  R = len(text_RS)
  take = lambda row, at: jax.lax.dynamic_slice(row, (at,), (window + 1,))
  y = jax.vmap(take)(text_RS, first_R)
  positions_RT = first_R[:, None] + jnp.arange(window)[None]
  causal_1TT = jnp.tril(jnp.ones((1, window, window), bool))
  empty = Branch.create(cache, config, R, window).replace(seen=jnp.broadcast_to(causal_1TT, (R, window, window)))

  def states(keep_2L):
    return hidden(params, y[:, :-1], positions_RT, empty, total_R, keep_2L, config, 'mask')[0]

  def guessed(token_and_state):
    """Returns whether a token is the likeliest one, and its probability divided by the likeliest token's."""
    token, state_D = token_and_state
    logits_V = logits(params, state_D, config)
    return jnp.argmax(logits_V) == token, jnp.exp(logits_V[token] - jnp.max(logits_V))

  states_CRTD = jax.vmap(states)(keep_C2L)
  C = len(keep_C2L)
  tokens_CRT = jnp.broadcast_to(y[:, 1:], (C, R, window))
  tokens_N, states_ND = tokens_CRT.reshape(-1), states_CRTD.reshape(C * R * window, -1)
  if len(tokens_N) <= AT_ONCE:
    guesses = jax.vmap(guessed)((tokens_N, states_ND))
  else:
    guesses = jax.lax.map(guessed, (tokens_N, states_ND), batch_size=AT_ONCE)
  tokens = jnp.maximum(jnp.sum(valid_R, dtype=jnp.float32), 1) * window
  mean = lambda x_N: jnp.sum(jnp.where(valid_R[:, None], x_N.reshape(C, R, window), 0), axis=(1, 2)) / tokens
  return jax.tree.map(mean, guesses)
