"""The items of a catalogue before they have identifiers: their ids, titles, texts, and vectors of features."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Items:
  """Items in the order of their numbers.

  Attributes:
    ids: what the log calls them.
    titles: what people call them; their ids if nothing else is known.
    texts: all that is known of each in words, such as title and genres.
    vectors: [I, D] float32 features; None: there are none, and `texts` must give them.
  """

  ids: tuple[str, ...]
  titles: tuple[str, ...]
  texts: tuple[str, ...]
  vectors: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)

  def taken(self, numbers: Sequence[int]) -> Items:
    """Returns some of the items, in this order."""
    take = lambda xs: tuple(xs[i] for i in numbers)
    vectors = None if self.vectors is None else self.vectors[np.asarray(numbers, int)]
    return Items(take(self.ids), take(self.titles), take(self.texts), vectors)
