"""Arrays that take long to compute, kept in a folder: they are computed in pieces, continued after an interruption, and read from then on."""

from collections.abc import Callable, Iterator, Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import DataError
from jaxlm.io.atomic import write_atomically
from jaxlm.io.locks import exclusive

Pieces = Callable[[list[str], int], Iterator[tuple[Any, Mapping[str, np.ndarray]]]]


def kept(folder: Path, shapes: Mapping[str, Any], pieces: Pieces) -> dict[str, np.ndarray]:
  """Returns arrays of a folder as read-only maps of their files; those that it lacks are computed first.

  Args:
    folder: holds NAME.npy. Its name must say what the arrays depend on.
    shapes: something with the `shape` and `dtype` of each array.
    pieces: pieces(names, done) yields (index along the first axis, {name: values}) for the arrays of these names, without the first
      `done` pieces; always the same pieces in the same order.

  Raises:
    DataError: the folder cannot be used, holds arrays of other shapes, or another process is writing it.
  """
  busy = DataError(f'{folder} is being written by another process: wait for it, or name another folder.')
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if missing := sorted(name for name in shapes if not _path(folder, name).exists()):
      with exclusive(folder / 'lock', busy):
        _write(folder, {name: shapes[name] for name in missing}, pieces)
    found = {name: np.load(_path(folder, name), mmap_mode='r') for name in shapes}
  except (OSError, ValueError) as e:
    raise DataError(f'{folder}: {e}') from e
  for name, wanted in shapes.items():
    if found[name].shape != tuple(wanted.shape):
      raise DataError(
        f'{_path(folder, name)} has shape {found[name].shape}, and {tuple(wanted.shape)} is wanted: remove the folder.'
      )
  # NumPy's files do not know bfloat16; its numbers are read as bytes.
  return {name: x.view(np.dtype(shapes[name].dtype)) for name, x in found.items()}


def _path(folder: Path, name: str, unfinished: bool = False) -> Path:
  return folder / f'{name}{".unfinished" if unfinished else ""}.npy'


def _write(folder: Path, shapes: Mapping[str, Any], pieces: Pieces) -> None:
  note, names = folder / 'unfinished.json', list(shapes)
  before = json.loads(note.read_text()) if note.exists() else {}
  done = before.get('pieces', 0) if before.get('names') == names else 0
  if done:
    made = {name: np.load(_path(folder, name, True), mmap_mode='r+') for name in names}
  else:
    create = np.lib.format.open_memmap
    made = {
      name: create(_path(folder, name, True), 'w+', _plain(x.dtype), tuple(x.shape)) for name, x in shapes.items()
    }
  for index, values in pieces(names, done):
    for name in names:
      made[name][index] = np.asarray(values[name]).view(made[name].dtype)
      made[name].flush()
    done += 1
    write_atomically(note, json.dumps({'names': names, 'pieces': done}))
  del made
  for name in names:
    _path(folder, name, True).replace(_path(folder, name))
  note.unlink(missing_ok=True)


def _plain(dtype: Any) -> np.dtype:
  """Returns a dtype that NumPy's files know, of the same size."""
  dtype = np.dtype(dtype)
  return dtype if dtype.isbuiltin == 1 else np.dtype(f'V{dtype.itemsize}')
