"""Writes text files atomically."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
  """Writes a UTF-8 file. If the process is killed, the path holds the old file or the complete new one.

  If the path is a symbolic link, its target is written.

  Raises:
    OSError: the path is not a regular file, for example a device or a folder, or it cannot be written.
  """
  if path.exists() and not path.is_file():
    raise OSError(f'{path} is no file that could be written anew: name another one.')
  path = path.resolve()
  scratch = path.with_name(f'.{path.name}.tmp')
  try:
    with open(scratch, 'w', encoding='utf-8') as f:
      f.write(text)
      f.flush()
      os.fsync(f.fileno())
    os.replace(scratch, path)
  finally:
    scratch.unlink(missing_ok=True)
