"""Terminal behaviour of commands: closed pipes, Ctrl-C, help width, errors in one line."""

from collections.abc import Iterator
import contextlib
import os
import shutil
import signal
import sys
from typing import Any


def silence(stream: Any) -> None:
  """Redirects a stream whose pipe is closed to /dev/null, so that later writes and the flush at exit do not fail."""
  try:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)
  except (AttributeError, OSError, ValueError):  # The stream has no file descriptor, or is closed already.
    pass


def bound_width() -> None:
  """Limits the width of help texts to 40 to 500 columns: with a width of 4 columns, tyro uses all memory."""
  columns = shutil.get_terminal_size().columns
  if not 40 <= columns <= 500:
    os.environ['COLUMNS'] = str(min(max(columns, 40), 500))


@contextlib.contextmanager
def command(cleans_up: bool = False) -> Iterator[None]:
  """Wraps a whole command: after Ctrl-C or a closed pipe (| head) it ends with the usual exit status and without a traceback.

  Ctrl-C kills the process at once, as it does a C program: a KeyboardInterrupt would shut the interpreter down while threads of
  XLA still run, and crash. Files are written atomically. Code that must save first, such as the training loop, installs its
  own signal handler. With `cleans_up`, Ctrl-C raises KeyboardInterrupt, for commands without JAX that remove temporary files.
  """
  bound_width()
  with contextlib.suppress(ValueError):  # Python sets signal handlers only in the main thread.
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
  """Ends the command with a message of one line for ValueError and OSError; other errors keep their traceback."""
  try:
    yield
  except BrokenPipeError:  # A closed pipe is not an error; `command` handles it.
    raise
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
