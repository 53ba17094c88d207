"""Optional output of training: event files, services and plots. If one fails, training continues without it.

A writer is an object with write(step, values) and close(). It works in a separate thread behind a queue of limited size, so that
a full disk or a service that does not answer can neither stop the loop nor keep the process from ending.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
from pathlib import Path
import queue
import threading
import time
from typing import Any

WAITING = 10_000
"""Largest number of calls that may wait for a writer; a writer further behind is dropped."""
PATIENCE = 30.0
"""Seconds that a writer may take to finish at the end of a run."""


@contextlib.contextmanager
def left_out(what: str, say: Callable[[str], None]) -> Iterator[None]:
  """Catches an error in an optional part of training, and prints it as one message."""
  try:
    yield
  except Exception as e:
    say(f'{what}: left out, everything else goes on. {type(e).__name__}: {e}')


class Side:
  """Runs a writer so that it never raises and never blocks. A writer that fails is reported once and dropped.

  Args:
    name: name of the writer, for the message.
    open_writer: creates the writer; called in its thread, because imports and connections may be slow.
    say: prints the message.
  """

  def __init__(self, name: str, open_writer: Callable[[], Any], say: Callable[[str], None]):
    self.name, self._say, self._out = name, say, False
    self._error: Exception | None = None
    self._queue: queue.Queue = queue.Queue(WAITING)
    self._thread = threading.Thread(target=self._work, args=(open_writer,), name=f'jaxlm-{name}', daemon=True)
    self._thread.start()

  def write(self, step: int, values: dict[str, float]) -> None:
    self._check()
    if self._out:
      return
    try:
      self._queue.put_nowait((step, values))
    except queue.Full:
      self._leave_out(f'{WAITING} values wait for it.')

  def close(self, patience: float = PATIENCE) -> None:
    """Waits at most `patience` seconds until the writer has written all values and closed."""
    end = time.monotonic() + patience
    if not self._out:
      with contextlib.suppress(queue.Full):
        self._queue.put(None, timeout=patience)
      self._thread.join(max(0.0, end - time.monotonic()))
    self._check()
    if not self._out and self._thread.is_alive():
      self._leave_out(f'it did not finish within {patience:g} seconds.')

  def _check(self) -> None:
    if self._error is not None and not self._out:
      self._leave_out(f'{type(self._error).__name__}: {self._error}')

  def _leave_out(self, why: str) -> None:
    self._out = True
    self._say(f'{self.name} is left out from here on, everything else goes on: {why}')

  def _work(self, open_writer: Callable[[], Any]) -> None:
    try:
      writer = open_writer()
      while (item := self._queue.get()) is not None:
        writer.write(*item)
      writer.close()
    except Exception as e:
      self._error = e


class TensorBoard:
  """Writes scalars to a TensorBoard event file. It does not use tensorboardX's SummaryWriter, whose queue blocks for ever after an
  error in its thread."""

  def __init__(self, directory: Path, step: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar

    self._event, self._session, self._scalar = event_pb2.Event, event_pb2.SessionLog, scalar
    directory.mkdir(parents=True, exist_ok=True)
    # The name of an event file has the second of its creation. The process id and the step keep a run that is resumed within that
    # second from overwriting it.
    self._events = EventsWriter(str(directory / 'events'), f'.{os.getpid()}.{step}')
    if step:
      # These events make TensorBoard drop values after `step`, which a stopped run logged and the resumed run writes again.
      self._put(step + 1, file_version='brain.Event:2')
      self._put(step + 1, session_log=self._session(status=self._session.START))
      self._events.flush()

  def _put(self, step: int, **content: Any) -> None:
    self._events.write_event(self._event(wall_time=time.time(), step=step, **content))

  def write(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self._put(step, summary=self._scalar(name, value))
    self._events.flush()

  def close(self) -> None:
    self._events.close()


class WeightsAndBiases:
  """Writes scalars to a Weights & Biases project, under the name of the run directory."""

  def __init__(self, directory: Path, project: str, settings: dict[str, Any]):
    import wandb

    name = directory.resolve().name
    self._run = wandb.init(project=project, name=name, id=name, resume='allow', config=settings)

  def write(self, step: int, values: dict[str, float]) -> None:
    self._run.log(values, step=step)

  def close(self) -> None:
    self._run.finish()
