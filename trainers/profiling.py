"""Measures the time of a run's steps, and records a profiler trace of some of them."""

import dataclasses
from pathlib import Path
import time
from typing import Any

import jax


@dataclasses.dataclass
class Clock:
  """Counts the seconds of training in this process, without evaluation and saving, and the tokens per second."""

  seconds: float = 0.0
  _last: float = dataclasses.field(default_factory=time.monotonic)

  def rate(self, tokens: float) -> float:
    passed, self._last = time.monotonic() - self._last, time.monotonic()
    self.seconds += passed
    return tokens / max(passed, 1e-9)

  def restart(self) -> None:
    self._last = time.monotonic()


class Trace:
  """A jax.profiler trace of `steps` steps from `start` on. The first steps of a run compile and would dominate the trace."""

  def __init__(self, directory: Path, start: int, steps: int):
    self.directory, self.start, self.end, self.on = directory, start, start + steps, False

  def at(self, step: float, done: Any) -> None:
    """Starts or ends the trace before `step`, after waiting for `done`, an array of the previous step."""
    if not self.on and self.start <= step < self.end:
      jax.block_until_ready(done)
      options = jax.profiler.ProfileOptions()
      # The Python tracer crashes jax 0.7 while a save runs in threads. XLA's events are enough.
      options.python_tracer_level = 0
      jax.profiler.start_trace(str(self.directory), profiler_options=options)
      self.on = True
    elif self.on and step >= self.end:
      self.on = False
      jax.block_until_ready(done)
      jax.profiler.stop_trace()
