"""What a cache is: the protocol between a model and its memory, in three parts.

  grow   attend(layer, q, k, v, positions, rule) -> (out, cache)     extends the cache by new tokens and attends: `Cache`
  read   read(layer, q, positions, rule, lengths) -> out             attends over what is there: `Readable`
  draft  beside(layer, q, positions, new, rule) -> out               attends over what is there and over `New` tokens,
         appended(keys, values, positions, mask) -> cache            and adds tokens to all layers: `Draftable`

A cache is a pytree. All caches grow: the model hands its queries, keys and values to `attend` and knows nothing else about
memory, so another memory is another value passed in. The other parts are for whoever else looks into a memory: cross-attention
to an encoder's output or to another model's layers reads; speculative decoding drafts. `isinstance(cache, Readable)` tells
whether a cache has a part, by its methods and not by its class.

Growing and drafting need a causal rule, because they hide what is no token of the row (unused slots, padding, tokens that were
taken back) by its position in the future. Reading hides unused slots under every rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxlm.attention.rule import AttentionRule

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

  from jaxlm.caches.slots import New


@runtime_checkable
class Cache(Protocol):
  """A cache that grows."""

  @property
  def fresh(self) -> bool:
    """Whether the model begins with what it puts before the first token, because nothing is remembered yet. Static."""
    ...

  def attend(
    self,
    layer: int,
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
    positions: Int[Array, 'B T'],
    rule: AttentionRule,
  ) -> tuple[Float[Array, 'B T N H'], Any]:
    """Returns the attention output of `layer` and the extended cache.

    Called once per layer. Positions rise by one along T, and are already applied to q and k.
    """
    ...


@runtime_checkable
class Readable(Protocol):
  """A cache that can be read without being extended."""

  def read(
    self,
    layer: int,
    q: Float[Array, 'B T N H'],
    positions: Int[Array, 'B T'],
    rule: AttentionRule,
    lengths: Int[Array, ' B'] | None = None,
  ) -> Float[Array, 'B T N H']:
    """Returns the attention of queries over the tokens that `layer` holds.

    Args:
      q: queries; positions are already applied.
      positions: the queries' positions, in any order. `rule.visible` decides which tokens each query sees, and a ring hides
        from each query the tokens that are too old for it.
      lengths: the row's tokens are those at positions 0 .. lengths - 1; later ones are hidden, such as drafted tokens that were
        not accepted. A model's sink token counts. None: all tokens count. `FullCache` does not know which of its slots are
        used, so a rule that is not causal needs `lengths` there.

    The softmax of a query that sees no token is the mean over all slots and has no meaning.
    """
    ...


@runtime_checkable
class Draftable(Protocol):
  """A cache beside which tokens can be drafted (`jaxlm.caches.branch.Branch`)."""

  @property
  def exact(self) -> bool:
    """Whether tokens are read as they were written, however old, so that many at once see what they see one by one. Static."""
    ...

  def beside(
    self, layer: int, q: Float[Array, 'B T N H'], positions: Int[Array, 'B T'], new: New, rule: AttentionRule
  ) -> Float[Array, 'B T N H']:
    """Returns the attention of queries over the tokens that `layer` holds and over `new` ones, which it does not hold."""
    ...

  def appended(
    self,
    keys: tuple[Float[Array, 'B T K H'], ...],
    values: tuple[Float[Array, 'B T K H'], ...],
    positions: Int[Array, 'B T'],
    mask: Bool[Array, 'B T'],
  ) -> Any:
    """Returns the cache with tokens added to all layers: those in `mask`. Positions rise by one along T."""
    ...
