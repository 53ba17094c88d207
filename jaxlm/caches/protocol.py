"""What every cache is: the protocol between a model and its memory.

A cache is a pytree with one property, `fresh`, and one method,

  attend(layer, q, k, v, positions, rule) -> (out, cache)

called once per layer with the new queries, keys and values (positions already applied to q and k). It extends itself
and attends; the model knows nothing else about memory, so another memory is another value passed in.

What drafting needs is asked of the caches that decode, and used by `Branch`, a cache that reads one of them:

  beside(layer, q, positions, new, rule) -> out            attends over what is there and over `New` tokens, which are not
  appended(keys, values, positions, mask) -> cache         adds tokens to all layers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from jaxlm.attention.rule import AttentionRule

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


class Cache(Protocol):
  """See the module's docstring."""

  @property
  def fresh(self) -> bool:
    """Whether nothing is remembered yet, so that the model begins with what it puts before the first token. Static."""
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
    """Returns the attention output of `layer` and the extended cache. `positions` rise by one along T."""
    ...
