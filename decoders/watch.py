"""The host's look at a batch that grows on the device: it streams what is new, and ends rows at a stop string."""

from collections.abc import Sequence
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from decoders.endings import stopped


class Watch:
  """Streams and stops the rows of one batch, whose tokens it reads between two chunks of steps."""

  def __init__(self, text, prompts: Sequence[Sequence[int]], stop: Sequence[str], stream):
    """`text(prompt, ids, skip_special)` is what the ids add to a prompt's text."""
    self.text, self.prompts, self.stop, self.stream = text, prompts, stop, stream
    self.sent = [0] * len(prompts)
    self.watching = bool(stop) or stream is not None

  def poll(self, state: Any, rows_R: np.ndarray) -> Any:
    """Returns the state (`decoders.state.DecodeState`), of rows `rows_R` of the batch, with those stopped that end here."""
    if not self.watching:
      return state
    tokens, lengths = np.asarray(state.tokens), np.array(state.lengths)
    stopped = np.zeros(len(lengths), bool)
    for i, row in enumerate(rows_R.tolist()):
      if lengths[i] == self.sent[row]:
        continue
      ids = tokens[i, : lengths[i]].tolist()
      if (end := self.stopped_at(row, ids)) is not None:
        lengths[i], stopped[i], ids = end, True, ids[:end]
      if self.stream is not None and ids[self.sent[row] :]:
        self.stream(row, ids[self.sent[row] :])
      self.sent[row] = int(lengths[i])
    if not stopped.any():
      return state
    return state.replace(lengths=jnp.asarray(lengths), done=state.done | stopped)

  def stopped_at(self, row: int, ids: list[int]) -> int | None:
    """The number of tokens after which a stop string is complete, or None."""

    def contains(n):
      return stopped(functools.partial(self.text, self.prompts[row]), ids[:n], self.stop)

    if not self.stop or not contains(len(ids)):
      return None
    return next(n for n in range(self.sent[row] + 1, len(ids) + 1) if contains(n))
