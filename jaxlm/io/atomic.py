"""Text files that nobody sees half written."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
  """Writes a file, in UTF-8, that is either there in full or not at all, whenever the process is killed.

  A symbolic link stays one: the file that it leads to is written.

  Raises:
    OSError: the path is something that must not be replaced, such as a device or a folder.
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
