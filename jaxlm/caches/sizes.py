"""The size of a cache in bytes, and the text of its repr."""

from typing import Any

import jax


def nbytes(tree: Any) -> int:
  """Returns the bytes of all arrays of a pytree."""
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def line(cache: Any, text: str) -> str:
  """Returns the repr of a cache: its class, `text` and its size. A default repr would print all arrays."""
  return f'{type(cache).__name__}({text}; {nbytes(cache) / 1e6:.3g} MB)'
