"""A lock file that lets one process write an output. The lock is released when the process ends, even if it is killed."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: str | Path, error: Exception) -> Iterator[None]:
  """Holds a lock on the file `path`, which is created and removed again. A lock file of a killed process is taken over.

  On a file system without locks, this does nothing.

  Raises:
    error: another process, or another part of this process, holds the lock.
    OSError: the file cannot be created.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with _opened(path, error) as file:
    try:
      yield
    finally:
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
          path.unlink()


def _opened(path: Path, error: Exception):
  while True:
    file = open(path, 'a')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.close()
      raise error from None
    except OSError:  # A file system without locks.
      return file
    # Between opening and locking, the process that held the lock may have removed the file.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        return file
    file.close()
