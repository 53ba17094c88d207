"""Signals: a run that is told to stop saves first."""

import math
import signal
import time

import jax
import numpy as np

GRACE = 2.0
"""Seconds that an evaluation may go on after a signal; a run that is not stopped by then may be killed."""


class Stopped(SystemExit):
  """A run that a signal stopped after saving; the exit code is 128 + the signal's number."""


class StopOnSignal:
  """Remembers the first SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once. Hosts agree through `stop`."""

  def __init__(self):
    self.received, self._came, self._previous = 0, math.inf, {}

  def __enter__(self):
    try:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    except ValueError:  # Not the main thread: signals are somebody else's.
      pass
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    if self.received == signal.SIGINT == number:
      raise KeyboardInterrupt
    if not self.received:
      self._came = time.monotonic()
    self.received = number

  def stop(self, step: int, every: int) -> bool:
    """Whether to stop after `step`. Several hosts ask each other, every `every` steps only: it waits for the devices."""
    self.received = self._largest(self.received, step, every)
    return bool(self.received)

  def stop_evaluation(self, batch: int) -> bool:
    """Whether to break an evaluation off after `batch` of its batches, for a signal that came a while ago."""
    late = self.received if time.monotonic() - self._came > GRACE else 0
    late = self._largest(late, batch, 10)
    self.received = max(self.received, late)
    return bool(late)

  def _largest(self, number: int, count: int, every: int) -> int:
    """Returns the largest of all hosts' numbers, which only they ask for whose `count` is a multiple of `every`."""
    if jax.process_count() == 1:
      return number
    if count % every:
      return 0
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.asarray(number))))
