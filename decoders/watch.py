"""Polls a batch that is decoded on the device: streams its new tokens, and ends rows at a stop string."""

from collections.abc import Sequence
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from decoders.endings import stopped


class Watch:
  """Streams and stops the rows of one batch; it reads their tokens between two chunks of steps."""

  def __init__(self, text, prompts: Sequence[Sequence[int]], stop: Sequence[str], stream):
    """`text(prompt, ids, skip_special)` returns the text that the ids add to a prompt."""
    self.text, self.prompts, self.stop, self.stream = text, prompts, stop, stream
    self.sent = [0] * len(prompts)
    self.watching = bool(stop) or stream is not None

  def poll(self, state: Any, rows_R: np.ndarray) -> Any:
    """Returns the state with rows ended at their stop strings. `state`: a DecodeState of the batch's rows `rows_R`."""
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
    """Returns the number of tokens after which a stop string is complete, or None."""

    def contains(n):
      return stopped(functools.partial(self.text, self.prompts[row]), ids[:n], self.stop)

    if not self.stop or not contains(len(ids)):
      return None
    return next(n for n in range(self.sent[row] + 1, len(ids) + 1) if contains(n))
