"""One round of speculative decoding: draft a tree, verify it in one call of the target, accept, compact.

The target reads the tree beside its cache (`jaxlm.caches.branch`), a rule chooses the accepted path
(`decoders.speculative.trees`), and only the keys and values of that path are added to the cache. No token is ever removed from
the cache, so every kind of cache works that keeps exact numbers.
"""

import abc
from collections.abc import Sequence
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.programs import Clock
from decoders.sampling import first_largest, noise, warped
from decoders.speculative import trees
from decoders.state import DecodeState
from jaxlm.caches.branch import Branch
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions


@struct.dataclass
class SpeculativeState(DecodeState):
  """Decoding state of R rows, with the drafter's memory and counters."""

  text: jax.Array  # [R, S] int32, prompt and output, each token at its position
  memory: Any  # the drafter's memory
  rounds: jax.Array  # [R] int32, rounds that the row took part in
  drafted: jax.Array  # [R] int32, tokens of all chains
  accepted: jax.Array  # [R] int32, drafted tokens kept; the target adds one more token per round
  verified: jax.Array  # [R] int32, nodes that the target read, padding nodes included


class Drafter(abc.ABC):
  """Base class of drafters, which propose tokens. Its defaults suit a drafter without weights and memory that fits every model.

  Drafters are compared by value, so that equal ones share compiled programs. Everything that changes is in the memory.
  """

  buckets: tuple[tuple[int, int], ...]
  """Increasing tree sizes (D, M). A round is verified at the smallest size that holds the trees of all rows; the last size is that
  of the trees that `propose` returns. If tokens are drawn for the rule `residual`, D is at least 1."""
  most_beside: int = 0
  """Largest number of leaves of one node."""

  @property
  def traced(self) -> 'Drafter':
    """This drafter without the fields that compiled programs do not need; the programs would keep them in memory."""
    return self

  def check(self, lm: LanguageModel, longest: int, drawn: bool) -> None:
    """Raises ValueError if it cannot draft for this model, for rows of `longest` tokens, or for a rule that needs drawn tokens."""

  def weights(self) -> Any:
    """Returns the drafter's parameters, or () without parameters. Unlike the memory, they do not change."""
    return ()

  def begin(
    self,
    clock: Clock,
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    state: SpeculativeState,
    chunk: int | None = None,
  ) -> Any:
    """Returns the drafter's first memory, for rows that the target has read; `state.memory` is None.

    `chunk`: number of a prompt's tokens that a drafter reads at once (None: all).
    """
    return ()

  @abc.abstractmethod
  def propose(
    self,
    params: Any,
    draft_params: Any,
    state: SpeculativeState,
    values: dict,
    rule: trees.Rule,
    config: ModelConfig,
    idle_R=None,
  ) -> tuple[trees.Tree, Any]:
    """Returns (a tree for each row, the new memory). Runs under jit.

    Args:
      draft_params: the result of `weights`.
      values: the active sampling settings (`Sampling.active`).
      idle_R: [R] bool, rows that need no tree, in addition to those that are done.
    """

  def learn(self, memory: Any, drafted_R, accepted_R) -> Any:
    """Returns the memory after a round, given each row's number of drafted and accepted tokens. Runs under jit."""
    return memory


def verify(params, state: SpeculativeState, tree: trees.Tree, values, config: ModelConfig, drafter: Drafter, rule):
  """Reads a tree beside the cache.

  Returns (the accepted path; its keys and values in each layer [R, P, K, H]; whether the logits of each of its nodes are not finite
  [R, P]; the position of the first node in the cache [R, 1]). P = 1 + the drafter's largest depth, for trees of every size.
  """
  R, D = tree.chain.shape
  tokens_RN, depth_RN, seen_RNN = trees.nodes(tree, state.last)
  N = tokens_RN.shape[1]
  branch = Branch.create(state.cache, config, R, N).replace(seen=seen_RNN)
  # Padding nodes get no position beyond the last one of the row, because a position embedding may end there.
  positions_RN = jnp.minimum(state.position[:, None] + depth_RN, state.total[:, None] - 1)
  hidden_RND, branch = functions.hidden(params, config, tokens_RN, positions_RN, branch, state.total)
  logits_RNV = functions.logits(params, config, hidden_RND)
  flat = lambda x: x.reshape(R * N, *x.shape[2:])
  seen = None
  if state.seen is not None:  # For each node, the tokens on the path to it count as seen too.
    path_RNN = jnp.broadcast_to(tokens_RN[:, None], seen_RNN.shape)
    put = lambda seen_V, tokens_N, here_N: seen_V.at[tokens_N].max(here_N)
    seen = flat(jax.vmap(jax.vmap(put, (None, 0, 0)))(state.seen, path_RNN, seen_RNN))
  scores_RNV = warped(flat(logits_RNV), seen, values).reshape(logits_RNV.shape)
  if rule == 'residual' and 'temperature' in values and tree.odds is not None:
    keys_R, probabilities = jax.vmap(independent_key)(state.keys, state.position), jax.nn.softmax(scores_RNV, axis=-1)
    accepted = trees.residual(tree, probabilities, keys_R, 1 + drafter.most_beside)
  else:
    if 'temperature' in values:
      scores_RNV += noise_of(state, depth_RN, D + 2, logits_RNV.shape[-1])
    accepted = trees.match(tree, first_largest(scores_RNV))
  kept = branch.along(accepted.path)
  finite_RP = jnp.take_along_axis(jnp.isfinite(logits_RNV).all(axis=-1), accepted.path, axis=1)
  broken_RP = ~finite_RP & (jnp.arange(D + 1)[None] <= accepted.count[:, None])
  more = drafter.buckets[-1][0] - D
  widen = lambda x: jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))
  wide = jax.tree.map(widen, (accepted.path, accepted.tokens, kept, broken_RP))
  return trees.Accepted(wide[0], wide[1], accepted.count), *wide[2:], branch.positions[:, :1]


def noise_of(state: SpeculativeState, depth_RN, depths: int, size: int):
  """Returns the noise [R, N, V] that plain decoding uses after each node; nodes of one depth share it."""
  at_RP = jnp.minimum(state.position[:, None] + jnp.arange(depths)[None], state.total[:, None] - 1) + 1
  of_row = lambda key, at_P: noise(jax.vmap(jax.random.fold_in, (None, 0))(key, at_P), size)
  return jnp.take_along_axis(jax.vmap(of_row)(state.keys, at_RP), depth_RN[:, :, None], axis=1)


def independent_key(key, position):
  """Returns a random key that is independent of the noise which chooses the token at this position."""
  return jax.random.fold_in(jax.random.fold_in(key, position), 1)


def one_round(
  params, draft_params, state: SpeculativeState, eos_E, values, *, config: ModelConfig, drafter, rule
) -> SpeculativeState:
  """Drafts, verifies, and adds the accepted tokens to the rows that are not done."""
  tree, memory = drafter.propose(params, draft_params, state, values, rule, config)
  # The output has room for at most this many drafted tokens, because the target adds one token per round.
  room_R = jnp.maximum(state.tokens.shape[1] - state.lengths - 1, 0)
  length_R = jnp.where(state.done, 0, jnp.minimum(tree.length, room_R))
  parents_RM = jnp.where(tree.parents < room_R[:, None], tree.parents, trees.NOWHERE)
  tree = tree.replace(length=length_R, parents=jnp.where(state.done[:, None], trees.NOWHERE, parents_RM))
  deepest, most = jnp.max(length_R), jnp.max(jnp.sum(tree.parents != trees.NOWHERE, axis=1))
  fits = jnp.stack([(deepest <= d) & (most <= m) for d, m in drafter.buckets])
  state = state.replace(memory=memory)
  sizes = [
    lambda tree, size=size: verify(params, state, tree.cut(*size), values, config, drafter, rule)
    for size in drafter.buckets
  ]
  size = jnp.argmax(fits)
  accepted, kept, broken_RP, first_R1 = jax.lax.switch(size, sizes, tree)
  nodes = jnp.array([1 + d + m for d, m in drafter.buckets], jnp.int32)[size]
  state = state.replace(verified=state.verified + jnp.where(state.done, 0, nodes))
  return with_accepted(state, accepted, kept, broken_RP, first_R1, length_R, eos_E, drafter)


def with_accepted(
  state: SpeculativeState, accepted: trees.Accepted, kept, broken_RP, first_R1, drafted_R, eos_E, drafter
):
  """Adds accepted tokens to output and cache, up to the end of each row or up to the first logits that are not finite."""
  R, P = accepted.tokens.shape
  index_1P, rows_R1 = jnp.arange(P)[None], jnp.arange(R)[:, None]
  offered_RP = index_1P <= accepted.count[:, None]
  ends_RP = offered_RP & jnp.isin(accepted.tokens, eos_E)
  first_true = lambda x_RP: jnp.argmax(x_RP, axis=1).astype(jnp.int32)
  until_R = jnp.where(ends_RP.any(axis=1), first_true(ends_RP), accepted.count) + 1
  sound_R = jnp.where(broken_RP.any(axis=1), first_true(broken_RP), P)
  finite_R = state.finite & (state.done | (sound_R >= until_R))
  until_R = jnp.minimum(until_R, sound_R)
  M = state.tokens.shape[1]
  new_R = jnp.where(state.done, 0, jnp.minimum(until_R, M - state.lengths))
  new_RP = index_1P < new_R[:, None]
  put = lambda x, at: x.at[rows_R1, jnp.where(new_RP, at[:, None] + index_1P, x.shape[1])].set(
    accepted.tokens, mode='drop'
  )
  newest_R = jnp.take_along_axis(accepted.tokens, jnp.maximum(new_R - 1, 0)[:, None], axis=1)[:, 0]
  lengths = state.lengths + new_R
  ended_R = (ends_RP & new_RP).any(axis=1)
  kept_R = jnp.maximum(new_R - 1, 0)
  return state.replace(
    tokens=put(state.tokens, state.lengths),
    text=put(state.text, state.position + 1),
    last=jnp.where(new_R > 0, newest_R, state.last),
    position=state.position + new_R,
    lengths=lengths,
    done=state.done | ended_R | (lengths >= M) | ~finite_R.all(),
    finite=finite_R,
    seen=None if state.seen is None else state.seen.at[rows_R1, accepted.tokens].max(new_RP),
    # The slots after the new tokens are written too. Their positions hide them until later tokens overwrite them.
    cache=state.cache.appended(*kept, first_R1 + index_1P, new_RP),
    memory=drafter.learn(state.memory, drafted_R, jnp.minimum(accepted.count, drafted_R)),
    rounds=state.rounds + (new_R > 0),
    drafted=state.drafted + drafted_R,
    accepted=state.accepted + kept_R,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=('config', 'drafter', 'rule'), donate_argnums=(2,))
def decode(params, draft_params, state: SpeculativeState, rounds, eos_E, values, *, config: ModelConfig, drafter, rule):
  """Takes at most `rounds` rounds, fewer when every row is done. Returns (state, rounds taken)."""
  unfinished = lambda carry: (carry[1] < rounds) & ~jnp.all(carry[0].done)
  run = functools.partial(one_round, config=config, drafter=drafter, rule=rule)
  body = lambda carry: (run(params, draft_params, carry[0], eos_E, values), carry[1] + 1)
  return jax.lax.while_loop(unfinished, body, (state, jnp.int32(0)))
