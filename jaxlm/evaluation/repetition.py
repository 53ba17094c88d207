"""How often a model says a token twice in a row, which models that mix several orders of a sentence do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int, Num


def repeated_tokens(
  tokens: Int[Array, 'B T'], mask: Num[Array, 'B T'] | None = None
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (number of tokens that equal the one before them, number of tokens), both float32 scalars.

  Their quotient over a corpus is the repeated-token ratio. Compare it with that of the references, and count before neighbours that
  are equal are merged. The mask is 1 for the first tokens of a row and 0 for padding; None: 1 for all.
  """
  is_token = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask) != 0
  repeats = (tokens[:, 1:] == tokens[:, :-1]) & is_token[:, 1:]
  return jnp.sum(repeats, dtype=jnp.float32), jnp.sum(is_token, dtype=jnp.float32)
