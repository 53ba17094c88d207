"""A lock that one process holds on an output, and that ends with the process, however that ends."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: str | Path, error: Exception) -> Iterator[None]:
  """Holds the lock file `path`, which is made for it and removed after it. One that a killed process left is taken over.

  Where a file system has no locks, nothing is held.

  Raises:
    error: another process, or another part of this one, holds the lock.
    OSError: the file cannot be made.
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
