"""Drafting: the draft's own beam search over the trie, from the target's beams and their scores.

Letters: B histories, K beams of the target, N drafted prefixes at each step, g steps, M largest number of children in the trie, L tokens
of an identifier, S slots beside the draft's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.atspeed.config import AtSpeedConfig
from decoders.beam.hypotheses import take
from decoders.beam.prefixes import Candidates, Prefixes, candidates, extended, first_of
from decoders.beam.reader import ModelReader
from jaxlm.data.item_trie import NOWHERE, ItemTrie

if TYPE_CHECKING:
  from jaxtyping import Array, Int


@struct.dataclass
class Drafted:
  """The prefixes of g steps. The parents of step 1 are the K beams of the target, those of a later step are the N of the step before."""

  nodes: jax.Array  # [B, g, N] int32; `NOWHERE` where there are fewer
  places: jax.Array  # [B, g, N] int32, parent * M + number of the child
  log_q: jax.Array | None  # [B, g, N M] float32 log-probabilities of all candidates, by place; None: not needed


def after_prompt(
  reader: ModelReader, params: Any, tokens, lengths, trie: ItemTrie, closed, keys, *, steps: int, config: AtSpeedConfig
) -> tuple[Drafted, Any]:
  """Reads the histories and drafts the first `steps` tokens. Returns (what is drafted, the draft's cache of the histories)."""
  B = len(tokens)
  state_BD, cache = reader.prompt(params, tokens, lengths, lengths + trie.depth)
  sees = jnp.zeros((B, 1, 0), bool)
  args = (
    reader,
    params,
    reader.branch(cache, 0),
    state_BD[:, None],
    Prefixes.roots(B),
    sees,
    lengths,
    jnp.zeros(B, jnp.int32),
  )
  return _drafted(*args, trie, closed, keys, steps, config), cache


def after_beams(
  reader: ModelReader, params: Any, cache, lengths, beams: Prefixes, depth, trie: ItemTrie, closed, keys, *, steps: int,
  config: AtSpeedConfig,
) -> Drafted:  # fmt: skip
  """Drafts `steps` tokens after the beams, which have `depth` [B] tokens.

  The draft reads all tokens of the beams again. It has read some of them before, but which ones differs between histories, and they
  are few.
  """
  (B, K), T = beams.nodes.shape, trie.depth - 1
  t_11T = jnp.arange(T)[None, None]
  tokens_BKT = jnp.zeros((B, K, T), jnp.int32)
  node_BK = beams.nodes
  for i in range(T):
    token_BK = jnp.where(node_BK > 0, trie.token[jnp.maximum(node_BK, 0)], 0)
    tokens_BKT = jnp.where(t_11T == depth[:, None, None] - 1 - i, token_BK[:, :, None], tokens_BKT)
    node_BK = jnp.where(node_BK > 0, trie.parent[jnp.maximum(node_BK, 0)], node_BK)
  slot_S = jnp.arange(K * T)
  same_beam_SS, before_SS = slot_S[:, None] // T == slot_S[None] // T, slot_S[:, None] % T >= slot_S[None] % T
  branch = reader.branch(cache, K * T)
  branch = branch.replace(seen=jnp.broadcast_to((same_beam_SS & before_SS)[None], (B, K * T, K * T)))
  positions_BS = lengths[:, None] + (slot_S % T)[None]
  states_BSD, branch = reader.read(params, tokens_BKT.reshape(B, -1), positions_BS, lengths + trie.depth, branch)
  last_BK = jnp.arange(K)[None] * T + jnp.maximum(depth[:, None] - 1, 0)
  sees_BKS = (slot_S[None, None] // T == jnp.arange(K)[None, :, None]) & (
    (slot_S % T)[None, None] < depth[:, None, None]
  )
  return _drafted(
    reader,
    params,
    branch,
    take(states_BSD, last_BK),
    beams,
    sees_BKS,
    lengths,
    depth,
    trie,
    closed,
    keys,
    steps,
    config,
  )


def _drafted(
  reader, params, branch, states_BWD, beams, sees_BWS, lengths, depth, trie, closed, keys, steps, config: AtSpeedConfig
) -> Drafted:
  """Returns `steps` drafted steps, given the draft's states of the beams and which slots of the branch each beam sees."""
  (B, _, before), N, M = sees_BWS.shape, config.beam, trie.fan_out
  total_B = lengths + trie.depth
  key_at = lambda j: None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, j)

  def chosen(states_BWD, beams, j):
    found = candidates(reader.logits(params, states_BWD), beams, trie, closed)
    if config.order == 'nested':
      beams, at_BN = nested(found, config.k, N)
    else:
      beams, at_BN = extended(found, N, key_at(j))
    log_q = None
    if config.drawn:
      log_q = jax.nn.log_softmax(found.flat, axis=1)
      log_q = jnp.where(found.flat > -jnp.inf, log_q, -jnp.inf)  # Without any candidate the softmax is no number.
      log_q = jnp.pad(log_q, ((0, 0), (0, N * M - log_q.shape[1])), constant_values=-jnp.inf)
    return beams, (beams.nodes, at_BN, log_q)

  beams, first = chosen(states_BWD, beams, 0)
  one_step = jax.tree.map(lambda x: x[:, None], first)
  if steps == 1:
    return Drafted(*one_step)
  room = (steps - 1) * N
  own_1NS = (jnp.arange(before + room)[None] == before + jnp.arange(N)[:, None])[None]
  sees_of = lambda sees_BXS, at_BN: take(sees_BXS, at_BN // M)
  branch = with_room(branch, room).replace(seen=jnp.pad(sees_of(sees_BWS, first[1]), ((0, 0), (0, 0), (0, room))))

  def step(carry, j):
    beams, branch = carry
    shift = jnp.asarray((j - 1) * N, jnp.int32)
    branch = branch.replace(at=before + shift, seen=branch.seen | jnp.roll(own_1NS, shift, axis=2))
    # Prefixes as long as an identifier have no children, so what they are read at has no meaning.
    ahead_B1 = jnp.minimum(depth + j, trie.depth)[:, None] - 1
    positions_BN = jnp.broadcast_to(lengths[:, None] + ahead_B1, (B, N))
    states_BND, branch = reader.read(params, beams.tokens(trie), positions_BN, total_B, branch)
    beams, new = chosen(states_BND, beams, j)
    return (beams, branch.replace(seen=sees_of(branch.seen, new[1]))), new

  _, later = jax.lax.scan(step, (beams, branch), jnp.arange(1, steps))
  together = jax.tree.map(lambda one, more: jnp.concatenate([one, jnp.moveaxis(more, 0, 1)], axis=1), one_step, later)
  return Drafted(*together)


def nested(found: Candidates, kept: int, width: int) -> tuple[Prefixes, Int[Array, 'B N']]:
  """Returns (prefixes, their places): the best `kept` children of the first `kept` prefixes, then the best others up to `width`."""
  flat_BF = found.flat
  at_BK, there_BK = first_of(flat_BF[:, : kept * found.scores.shape[2]], kept)
  if width == kept:
    return found.at(at_BK, there_BK), at_BK
  taken_BF = jax.vmap(lambda at, there: jnp.zeros(flat_BF.shape[1], bool).at[at].max(there))(at_BK, there_BK)
  more_BN, there_BN = first_of(jnp.where(taken_BF, -jnp.inf, flat_BF), width - kept)
  at_BN = jnp.concatenate([at_BK, more_BN], axis=1)
  return found.at(at_BN, jnp.concatenate([there_BK, there_BN], axis=1)), at_BN


def with_room(branch, room: int):
  """Returns a branch with `room` more slots."""
  more = lambda x: jnp.pad(x, ((0, 0), (0, room), *((0, 0),) * (x.ndim - 2)))
  return branch.replace(
    keys=tuple(map(more, branch.keys)), values=tuple(map(more, branch.values)), positions=more(branch.positions)
  )


def none_drafted(batch: int, config: AtSpeedConfig, fan_out: int) -> Drafted:
  """Returns a step without drafted prefixes, which stands behind the last step."""
  shape = batch, 1, config.beam
  log_q = jnp.full((batch, 1, config.beam * fan_out), -jnp.inf, jnp.float32) if config.drawn else None
  return Drafted(jnp.full(shape, NOWHERE, jnp.int32), jnp.zeros(shape, jnp.int32), log_q)
