"""Signal handling: a run that gets SIGTERM or Ctrl-C saves before it stops."""

import math
import signal
import time

import jax
import numpy as np

GRACE = 2.0
"""Seconds that an evaluation may continue after a signal. Systems soon kill a process that does not stop."""


class Stopped(SystemExit):
  """Raised when a signal has stopped a run and the run is saved; the exit code is 128 + the signal's number."""


class StopOnSignal:
  """Remembers a SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once. `stop` makes all hosts agree."""

  def __init__(self):
    self.received, self._came, self._previous = 0, math.inf, {}

  def __enter__(self):
    try:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    except ValueError:  # Only the main thread can handle signals.
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
    """Returns whether to stop after `step`. Several hosts agree only every `every` steps, because that waits for the devices."""
    self.received = self._largest(self.received, step, every)
    return bool(self.received)

  def stop_evaluation(self, batch: int) -> bool:
    """Returns whether to stop an evaluation after `batch` batches, because a signal came more than GRACE seconds ago."""
    late = self.received if time.monotonic() - self._came > GRACE else 0
    late = self._largest(late, batch, 10)
    self.received = max(self.received, late)
    return bool(late)

  def _largest(self, number: int, count: int, every: int) -> int:
    """Returns the largest `number` of all hosts if `count` is a multiple of `every`, otherwise 0; on one host, `number`."""
    if jax.process_count() == 1:
      return number
    if count % every:
      return 0
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.asarray(number))))
