"""Prefixes of item identifiers, and how a search extends them by what a trie allows.

  score(prefix + v) = score(prefix) + log_softmax(logits(prefix))[v]   for tokens v that follow the prefix in the trie

The softmax is over the whole vocabulary: scores are log-probabilities of the model, not normalised among the allowed tokens. A prefix is
a node of the trie, so prefixes are compared by number.

Letters: B histories, W prefixes of a history, M largest number of children in the trie, C nodes of the trie, N prefixes to choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from decoders.beam.hypotheses import take
from jaxlm.data.item_trie import NOWHERE, ItemTrie

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Prefixes:
  """W prefixes of each history. Where there are fewer, the node is `NOWHERE` and the score -inf."""

  nodes: jax.Array  # [B, W] int32
  scores: jax.Array  # [B, W] float32

  @classmethod
  def roots(cls, batch: int, width: int = 1) -> 'Prefixes':
    """Returns the empty prefix of each history, alone among `width` places."""
    first_1W = (jnp.arange(width) == 0)[None]
    of_all = lambda there, other: jnp.broadcast_to(jnp.where(first_1W, there, other), (batch, width))
    return cls(of_all(0, NOWHERE), of_all(0.0, -jnp.inf))

  @property
  def there(self) -> jax.Array:
    return self.nodes >= 0

  def sorted(self) -> 'Prefixes':
    """Returns the prefixes of each history, best first."""
    order_BW = jnp.argsort(-self.scores, axis=1, stable=True)
    return Prefixes(take(self.nodes, order_BW), take(self.scores, order_BW))

  def tokens(self, trie: ItemTrie) -> jax.Array:
    """Returns the last token of each prefix; 0 where there is none."""
    return jnp.where(self.nodes > 0, trie.token[jnp.maximum(self.nodes, 0)], 0)


@struct.dataclass
class Candidates:
  """The children of prefixes, parent by parent, by rising token: the order in which equal scores are resolved."""

  scores: jax.Array  # [B, W, M] float32; -inf: there is no such child
  nodes: jax.Array  # [B, W, M] int32
  finite: jax.Array  # [B] bool, whether all logits were numbers

  @property
  def flat(self) -> jax.Array:
    """The scores as [B, W M]."""
    return self.scores.reshape(len(self.scores), -1)

  def at(self, index: Int[Array, 'B N'], there: Bool[Array, 'B N']) -> Prefixes:
    """Returns the candidates at places of `flat`, where `there` is true."""
    nodes = jnp.take_along_axis(self.nodes.reshape(len(index), -1), index, axis=1)
    scores = jnp.take_along_axis(self.flat, index, axis=1)
    return Prefixes(jnp.where(there, nodes, NOWHERE), jnp.where(there, scores, -jnp.inf))


def candidates(
  logits: Float[Array, 'B W V'], prefixes: Prefixes, trie: ItemTrie, closed: Bool[Array, 'B C'] | None = None
) -> Candidates:
  """Returns the children of prefixes with their scores.

  Args:
    logits: float32, of what follows each prefix.
    prefixes: the prefixes.
    trie: what may follow.
    closed: nodes that must not be entered (`ItemTrie.closed`); None: none.
  """
  tokens_BWM, nodes_BWM, there_BWM = trie.children(prefixes.nodes)
  if closed is not None:
    there_BWM &= ~take(closed, jnp.maximum(nodes_BWM, 0).reshape(len(closed), -1)).reshape(there_BWM.shape)
  log_z_BW1 = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  log_p_BWM = jnp.take_along_axis(logits, tokens_BWM, axis=-1) - log_z_BW1
  scores_BWM = jnp.where(there_BWM, prefixes.scores[..., None] + log_p_BWM, -jnp.inf)
  # One NaN among the logits of a row, or an infinite one, makes the normaliser of the row no number.
  return Candidates(scores_BWM, nodes_BWM, (jnp.isfinite(log_z_BW1[..., 0]) | ~prefixes.there).all(axis=1))


def first_of(ranks: Float[Array, 'B F'], count: int) -> tuple[Int[Array, 'B N'], Bool[Array, 'B N']]:
  """Returns (the places of the `count` largest numbers, whether each is above -inf); among equal ones the lower place is first."""
  size = ranks.shape[1]
  ranks = jnp.pad(ranks, ((0, 0), (0, max(0, count - size))), constant_values=-jnp.inf)
  best, at = jax.lax.top_k(ranks, count)
  return jnp.minimum(at, size - 1), best > -jnp.inf


def gumbel(keys: Array, size: int) -> Float[Array, 'B F']:
  """Returns noise; the largest n of log-probabilities plus noise are n draws without replacement, in order."""
  return jax.vmap(lambda key: jax.random.gumbel(key, (size,), jnp.float32))(keys)


def extended(found: Candidates, width: int, keys: Array | None = None) -> tuple[Prefixes, Int[Array, 'B N']]:
  """Returns (the next prefixes of each history, the place of each in `found.flat`).

  These are the best `width`, or with `keys` [B] of random numbers as many draws without replacement from the softmax of the scores.
  """
  ranks = found.flat if keys is None else found.flat + gumbel(keys, found.flat.shape[1])
  at, there = first_of(ranks, width)
  return found.at(at, there), at
