"""A round of speculative beam search: one call of the target on a tree of drafted prefixes, and what is kept of it.

The target reads the K beams that it has not read yet and the g N drafted prefixes behind them in one call, beside the one cache of the
history; each token sees the history, its own ancestors and itself. In the first round it reads the history in the same call. Then it
extends its beams step by step with the states of that call, for as long as all beams are among the drafted prefixes: these scores are
the target's own, so under the strict rule the beams are those of its own search, whatever was drafted.

Letters: B histories, K beams, N drafted prefixes of a step, g steps, M largest number of children in the trie, L tokens of an identifier,
A = L - 2 tokens of a beam in the cache, Q = K + g N tokens of a call, S = K A + Q slots beside the cache, T = L - 1 tokens of a path.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.atspeed import rules
from decoders.atspeed.config import AtSpeedConfig
from decoders.atspeed.drafting import Drafted, none_drafted
from decoders.beam.hypotheses import take
from decoders.beam.prefixes import Prefixes, candidates
from decoders.beam.reader import ModelReader
from jaxlm.caches import Branch
from jaxlm.data.item_trie import ItemTrie

if TYPE_CHECKING:
  from jaxtyping import Array, Int


@struct.dataclass
class Round:
  """State of a search after a round. The last token of each beam is not in the cache."""

  beams: Prefixes  # of K
  depth: jax.Array  # [B] int32, tokens of the beams; L: the search has ended
  lengths: jax.Array  # [B] int32, tokens of the histories
  cache: Any  # the target's, of the histories
  keys: tuple[jax.Array, ...]  # per layer [B, K A, heads, H]: the tokens of the beams, beam by beam
  values: tuple[jax.Array, ...]
  positions: jax.Array  # [B, K A] int32, of these tokens, as the model counts them
  calls: jax.Array  # [B] int32, calls of the target
  accepted: jax.Array  # [B] int32, accepted steps
  finite: jax.Array  # [B] bool, whether all logits were numbers


def first(
  reader: ModelReader,
  params: Any,
  tokens,
  lengths,
  drafted: Drafted,
  trie: ItemTrie,
  closed,
  keys,
  *,
  config: AtSpeedConfig,
) -> Round:
  """Reads the histories and what is drafted after them. Returns the state after the first round."""
  B, g, N = drafted.nodes.shape
  zeros_B, total_B = jnp.zeros(B, jnp.int32), lengths + trie.depth
  path_B1T = jnp.full((B, 1, trie.depth - 1), -1)
  paths_BXT = paths_of(path_B1T, drafted, zeros_B, 0, trie)
  prefixes, positions_BQ = Prefixes(drafted.nodes.reshape(B, -1), None), positions_of(zeros_B, lengths, g, N, trie)
  state_BD, states_BQD, branch = reader.prompt_and_tree(
    params, tokens, lengths, total_B, prefixes.tokens(trie), positions_BQ, seen_by(paths_BXT[:, 1:], g * N)
  )
  states_BXD = jnp.concatenate([state_BD[:, None], states_BQD], axis=1)
  state = Round(
    Prefixes.roots(B, config.k), zeros_B, lengths, branch.cache, (), (), None, zeros_B, zeros_B, jnp.ones(B, bool)
  )
  at_BK = jnp.zeros((B, config.k), jnp.int32)
  return advanced(reader, params, state, drafted, branch, states_BXD, paths_BXT, at_BK, trie, closed, keys, config)


def later(
  reader: ModelReader, params: Any, state: Round, drafted: Drafted | None, trie: ItemTrie, closed, keys, *, config: AtSpeedConfig
) -> Round:  # fmt: skip
  """Returns the state after one more round. `drafted` None: the target takes one step of its own."""
  (B, K), A = state.beams.nodes.shape, trie.depth - 2
  g, N = (0, config.beam) if drafted is None else drafted.nodes.shape[1:]
  slot_1KA = jnp.arange(K * A).reshape(1, K, A)
  t_11T = jnp.arange(A + 1)[None, None]
  last_B11 = state.depth[:, None, None] - 1
  own_1K1 = (K * A + jnp.arange(K))[None, :, None]
  path_BKT = jnp.where(
    t_11T < last_B11, jnp.pad(slot_1KA, ((0, 0), (0, 0), (0, 1))), jnp.where(t_11T == last_B11, own_1K1, -1)
  )
  paths_BQT = path_BKT if drafted is None else paths_of(path_BKT, drafted, state.depth, K * A + K, trie)
  nodes_BQ = state.beams.nodes
  if drafted is not None:
    nodes_BQ = jnp.concatenate([nodes_BQ, drafted.nodes.reshape(B, -1)], axis=1)
  root_positions_BK = jnp.broadcast_to((state.lengths + state.depth)[:, None] - 1, (B, K))
  positions_BQ = jnp.concatenate([root_positions_BK, positions_of(state.depth, state.lengths, g, N, trie)], axis=1)
  Q = K + g * N
  room = lambda x: jnp.pad(x, ((0, 0), (0, Q), *((0, 0),) * (x.ndim - 2)))
  branch = Branch(
    state.cache, tuple(map(room, state.keys)), tuple(map(room, state.values)), room(state.positions),
    jnp.int32(K * A), seen_by(paths_BQT, K * A + Q),
  )  # fmt: skip
  tokens_BQ = Prefixes(nodes_BQ, None).tokens(trie)
  states_BQD, branch = reader.read(params, tokens_BQ, positions_BQ, state.lengths + trie.depth, branch)
  at_BK = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32)[None], (B, K))
  return advanced(reader, params, state, drafted, branch, states_BQD, paths_BQT, at_BK, trie, closed, keys, config)


def paths_of(roots_BXT, drafted: Drafted, depth, first_slot: int, trie: ItemTrie):
  """Returns the slots of each token's path from the history to itself, roots first: [B, roots + g N, T], -1 where there is none."""
  g, N = drafted.nodes.shape[1:]
  t_11T, levels = jnp.arange(trie.depth - 1)[None, None], [roots_BXT]
  for j in range(g):
    own_1N1 = (first_slot + j * N + jnp.arange(N))[None, :, None]
    above_BNT = take(levels[-1], drafted.places[:, j] // trie.fan_out)
    levels.append(jnp.where(t_11T == depth[:, None, None] + j, own_1N1, above_BNT))
  return jnp.concatenate(levels, axis=1)


def seen_by(paths_BXT, slots: int):
  """Returns which slots each token sees, [B, X, S]."""
  return (paths_BXT[:, :, None, :] == jnp.arange(slots)[None, None, :, None]).any(axis=-1)


def positions_of(depth, lengths, g: int, N: int, trie: ItemTrie) -> Int[Array, 'B Q']:
  """Returns the positions of drafted tokens. Those beyond an identifier are none, and get the last position of their row."""
  step_1Q = jnp.repeat(jnp.arange(g), N)[None]
  return lengths[:, None] + jnp.minimum(depth[:, None] + step_1Q, trie.depth - 1)


def advanced(
  reader, params, state: Round, drafted: Drafted | None, branch: Branch, states_BXD, paths_BXT, at_BK, trie: ItemTrie, closed,
  keys, config: AtSpeedConfig,
) -> Round:  # fmt: skip
  """Returns the state after the steps that one call of the target allows.

  Args:
    branch: the tokens of the call.
    states_BXD: the target's states of the roots and of the drafted tokens, step by step.
    paths_BXT: their paths in the branch.
    at_BK: which of these states is each beam's.
  """
  B, K = state.beams.nodes.shape
  N, M, L = config.beam, trie.fan_out, trie.depth
  end = none_drafted(B, config, M)
  g = 0 if drafted is None else drafted.nodes.shape[1]
  steps = end if drafted is None else jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), drafted, end)
  roots = states_BXD.shape[1] - g * N
  active_B = state.depth < L
  over_rows = lambda mask_B, x, y: jnp.where(mask_B.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
  nothing = jax.tree.map(lambda x: x[:, 0], end)

  def step(carry, xs):
    beams, depth, at_BK, draft_BK, parent_BK, goes_on_B, accepted, finite_B = carry
    j, new = xs
    # The last token is the target's alone. Drafts of it exist only where another history of the batch has more steps left, and to verify
    # them would let the relaxed rules draw something else than they draw for the history alone.
    new = jax.tree.map(functools.partial(over_rows, depth + 1 == L), nothing, new)
    logits_BKV = reader.logits(params, take(states_BXD, at_BK))
    found = candidates(logits_BKV, beams, trie, closed)
    drafts = as_candidates(new, draft_BK, beams, M)
    keys_B = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, j)
    place_BK, there_BK, all_drafted_B = keep(keys_B, found.flat, drafts, config)
    same_BKN = place_BK[:, :, None] == drafts.place[:, None, :]
    which_BK = jnp.argmax(same_BKN, axis=2).astype(jnp.int32)
    accepted_B = goes_on_B & all_drafted_B & (j < g) & (depth + 1 < L)
    change = functools.partial(over_rows, goes_on_B)
    carry = (
      jax.tree.map(change, found.at(place_BK, there_BK), beams), depth + goes_on_B, change(roots + j * N + which_BK, at_BK),
      change(which_BK, draft_BK), change(take(at_BK, place_BK // M), parent_BK), accepted_B, accepted + accepted_B,
      finite_B & (found.finite | ~goes_on_B),
    )  # fmt: skip
    return carry, None

  roots_BK = jnp.broadcast_to(jnp.arange(K, dtype=jnp.int32)[None], (B, K))
  carry = state.beams, state.depth, at_BK, roots_BK, at_BK, active_B, state.accepted, state.finite
  xs = jnp.arange(g + 1, dtype=jnp.int32), jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), steps)
  beams, depth, _, _, parent_BK, _, accepted, finite = jax.lax.scan(step, carry, xs)[0]
  # What is kept are the tokens up to each beam's parent; the beam's own token is read in the next round.
  path_BS = jnp.maximum(take(paths_BXT, parent_BK)[:, :, : L - 2], 0).reshape(B, -1)
  kept_keys, kept_values = branch.along(path_BS)
  positions_BS = jnp.take_along_axis(branch.positions, path_BS, axis=1)
  return state.replace(
    beams=beams, depth=depth, keys=kept_keys, values=kept_values, positions=positions_BS, calls=state.calls + active_B, accepted=accepted, finite=finite
  )  # fmt: skip


def as_candidates(new: Drafted, draft_BK, beams: Prefixes, M: int) -> rules.Drafts:
  """Returns one drafted step in terms of the target's candidates; `draft_BK`: the draft's number of each beam."""
  B, N = new.places.shape
  parents_BN = new.places // M
  same_BNK = (parents_BN[:, :, None] == draft_BK[:, None, :]) & beams.there[:, None, :] & (new.nodes >= 0)[:, :, None]
  place_BN = jnp.argmax(same_BNK, axis=2) * M + new.places % M
  place_BN = jnp.where(same_BNK.any(axis=2), place_BN, -1)
  if new.log_q is None:
    return rules.Drafts(place_BN, None, None, None)
  there_BN = new.nodes >= 0
  log_q_BN = jnp.where(there_BN, jnp.take_along_axis(new.log_q, new.places, axis=1), -jnp.inf)
  of_beams_BKM = take(new.log_q.reshape(B, -1, M), draft_BK)
  of_beams_BKM = jnp.where(beams.there[:, :, None], of_beams_BKM, -jnp.inf)
  drawn_BF = jax.vmap(lambda at, there: rules.put(at, there, new.log_q.shape[1]))(new.places, there_BN)
  rest_B = jnp.where(drawn_BF, 0, jnp.exp(new.log_q)).sum(axis=1)
  return rules.Drafts(place_BN, log_q_BN, of_beams_BKM.reshape(B, -1), rest_B)


def keep(keys, scores_BF, drafts: rules.Drafts, config: AtSpeedConfig):
  """Returns what the rule of the config says of each history."""
  if config.verify == 'strict':
    return jax.vmap(functools.partial(rules.strict, kept=config.k))(scores_BF, drafts)
  rule = rules.relaxed_exact
  if config.verify == 'relaxed':
    rule = functools.partial(rules.relaxed, by_score=config.select == 'score')
  return jax.vmap(functools.partial(rule, kept=config.k))(keys, scores_BF, drafts)
