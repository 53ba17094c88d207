"""The protocol between a model and its cache, in three parts.

  grow   attend(layer, q, k, v, positions, rule) -> (out, cache)     extends the cache by new tokens and attends: `Cache`
  read   read(layer, q, positions, rule, lengths) -> out             attends over the stored tokens: `Readable`
  draft  beside(layer, q, positions, new, rule) -> out               attends over the stored tokens and over `New` tokens
         appended(keys, values, positions, mask) -> cache            adds tokens to all layers: `Draftable`

A cache is a pytree. Every cache can grow: the model passes queries, keys and values to `attend` and knows nothing else about
the cache, so another kind of cache is another value passed in. Reading is for cross-attention to an encoder's output or to
another model's layers; drafting is for speculative decoding. `isinstance(cache, Readable)` tests whether a cache has the
methods of a part.

Growing and drafting need a causal rule: unused slots, padding and rejected tokens are hidden by positions in the future.
Reading hides unused slots under every rule.
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
    """Whether the cache is empty, so that the model must put its sink token, if it has one, before the new tokens. Static."""
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

    The model calls it once per layer. Positions rise by one along T, and are already applied to q and k.
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
      lengths: number of tokens of each row, a model's sink token included. Tokens at later positions are hidden, for example
        drafted tokens that were not accepted. None: all tokens are visible. `FullCache` does not know which of its slots are
        used, so it needs `lengths` if the rule is not causal.

    The result is meaningless for a query that sees no token: its softmax is the mean over all slots.
    """
    ...


@runtime_checkable
class Draftable(Protocol):
  """A cache beside which tokens can be drafted (`jaxlm.caches.branch.Branch`)."""

  @property
  def exact(self) -> bool:
    """Whether stored keys and values never change (no quantisation), so that several tokens at once give the same outputs as one
    by one. Static."""
    ...

  def beside(
    self, layer: int, q: Float[Array, 'B T N H'], positions: Int[Array, 'B T'], new: New, rule: AttentionRule
  ) -> Float[Array, 'B T N H']:
    """Returns the attention of queries over the tokens that `layer` holds and over `new` tokens, which it does not hold."""
    ...

  def appended(
    self,
    keys: tuple[Float[Array, 'B T K H'], ...],
    values: tuple[Float[Array, 'B T K H'], ...],
    positions: Int[Array, 'B T'],
    mask: Bool[Array, 'B T'],
  ) -> Any:
    """Returns the cache with the tokens in `mask` added to all layers. Positions rise by one along T."""
    ...
