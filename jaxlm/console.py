"""The screen and the keyboard of commands: what happens when a reader goes away, and on Ctrl-C."""

from collections.abc import Iterator
import contextlib
import os
import shutil
import signal
import sys
from typing import Any


def silence(stream: Any) -> None:
  """Points a stream whose reader is gone at nothing, so that no later write, nor the flush at exit, fails again."""
  try:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)
  except (AttributeError, OSError, ValueError):  # Not a file of the system, or closed already.
    pass


def bound_width() -> None:
  """Lets help be set for 40 to 500 columns, whatever the terminal says: for four of them tyro takes all memory."""
  columns = shutil.get_terminal_size().columns
  if not 40 <= columns <= 500:
    os.environ['COLUMNS'] = str(min(max(columns, 40), 500))


@contextlib.contextmanager
def command(cleans_up: bool = False) -> Iterator[None]:
  """Around a whole command: Ctrl-C, and a reader that goes away (| head), end it as shells expect, without a traceback.

  Ctrl-C ends the process itself, as it ends any program in C: Python's way of unwinding leaves threads of XLA running into a
  dying interpreter, which crashes. What is written is written atomically, and a part that has something to save, such as the
  training loop, takes the signal for as long as it has. With `cleans_up`, for commands without JAX that have something to
  remove, Python unwinds.
  """
  bound_width()
  with contextlib.suppress(ValueError):  # Not the main thread: signals are somebody else's.
    if not cleans_up and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
      signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    try:
      yield
    finally:
      if sys.stdout is not None:
        sys.stdout.flush()
  except BrokenPipeError:
    silence(sys.stdout)
    raise SystemExit(128 + signal.SIGPIPE) from None
  except KeyboardInterrupt:
    raise SystemExit(128 + signal.SIGINT) from None


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
  """Ends the command with one line for an error whose message says what was wrong; a programming error keeps its traceback."""
  try:
    yield
  except BrokenPipeError:  # Nothing is wrong where a reader has read enough: `command` ends it.
    raise
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
