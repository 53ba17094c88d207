"""Beam search for items: the K best identifiers of a trie after each history, in one compiled program.

Each history is read once, and all its beams read the one cache of it. What the beams themselves generate is kept beside it, token by
token, and a beam that takes the place of another takes over which of these tokens it sees: no cache is ever copied. The arrays of the
trie are arguments of the program, so that other items of the same capacity need no other program.

Letters: B histories, P their padded length, K beams, L tokens of an identifier, S = K (L - 1) slots for generated tokens.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.beam.hypotheses import take
from decoders.beam.prefixes import Prefixes, candidates, extended
from decoders.beam.reader import ModelReader
from jaxlm.data.item_trie import ItemTrie

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Int


@struct.dataclass
class FoundItems:
  """The K identifiers of each history, best first."""

  leaves: jax.Array  # [B, K] int32 nodes of the trie; `NOWHERE` where there are fewer
  scores: jax.Array  # [B, K] float32 sums of log-probabilities; -inf where there are fewer
  finite: jax.Array  # [B] bool, whether all logits were numbers; where False, the items have no meaning


@functools.partial(jax.jit, static_argnames=('reader', 'width'))
def search(
  params: Any,
  tokens: Int[Array, 'B P'],
  lengths: Int[Array, ' B'],
  trie: ItemTrie,
  closed: Bool[Array, 'B C'] | None = None,
  keys: Array | None = None,
  *,
  reader: ModelReader,
  width: int,
) -> FoundItems:
  """Returns the items after each history.

  Args:
    params: parameters of the model.
    tokens: histories, padded on the right.
    lengths: number of tokens of each history, at least 1.
    trie: identifiers that may be generated.
    closed: nodes of the trie that must not be entered after each history (`ItemTrie.closed`); None: none.
    keys: [B] random keys: each step draws its beams without replacement from the softmax of all scores; None: it takes the best.
    reader: how the model is read.
    width: number of beams K.
  """
  B, L, K = len(tokens), trie.depth, width
  total_B = lengths + L
  state_BD, cache = reader.prompt(params, tokens, lengths, total_B)
  key_at = lambda t: None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, t)
  found = candidates(reader.logits(params, state_BD[:, None]), Prefixes.roots(B), trie, closed)
  beams, _ = extended(found, K, key_at(0))
  S = K * (L - 1)
  own_1KS = (jnp.arange(S)[None] == jnp.arange(K)[:, None])[None]

  def step(t, carry):
    beams, branch, finite_B = carry
    at = jnp.asarray((t - 1) * K, jnp.int32)
    branch = branch.replace(at=at, seen=branch.seen | jnp.roll(own_1KS, at, axis=2))
    positions_BK = jnp.broadcast_to((lengths + t - 1)[:, None], (B, K))
    states_BKD, branch = reader.read(params, beams.tokens(trie), positions_BK, total_B, branch)
    found = candidates(reader.logits(params, states_BKD), beams, trie, closed)
    beams, at_BK = extended(found, K, key_at(t))
    return beams, branch.replace(seen=take(branch.seen, at_BK // trie.fan_out)), finite_B & found.finite

  finite_B = found.finite
  if L > 1:
    branch = reader.branch(cache, S).replace(seen=jnp.zeros((B, K, S), bool))
    beams, _, finite_B = jax.lax.fori_loop(1, L, step, (beams, branch, finite_B))
  beams = beams if keys is None else beams.sorted()
  return FoundItems(beams.nodes, beams.scores, finite_B)
