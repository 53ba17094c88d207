"""How large a cache is: in bytes, and in the line that it prints."""

from typing import Any

import jax


def nbytes(tree: Any) -> int:
  """Returns the bytes of all arrays of a pytree."""
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def line(cache: Any, text: str) -> str:
  """Returns what a cache prints: its class, `text`, and its megabytes. All its arrays would fill pages."""
  return f'{type(cache).__name__}({text}; {nbytes(cache) / 1e6:.3g} MB)'
