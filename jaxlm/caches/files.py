"""Caches on disk: a folder with cache.json, which describes the structure of the cache, and the arrays in Orbax's format."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil
from typing import Any

import jax

from jaxlm.caches import described
from jaxlm.errors import CheckpointError


def save(folder: str | Path, cache: Any, notes: dict[str, Any]) -> None:
  """Writes a cache and JSON notes; the folder appears when it is complete. Raises FileExistsError if it exists already."""
  folder = Path(folder).absolute()
  if folder.exists():
    raise FileExistsError(f'{folder} is there already, and is not overwritten: remove it or choose another name.')
  half = folder.with_name(f'.{folder.name}.half')
  shutil.rmtree(half, ignore_errors=True)
  half.mkdir(parents=True)
  arrays: dict[str, jax.Array] = {}
  saved = {'cache': described.described(cache, arrays), 'notes': notes}
  (half / 'cache.json').write_text(json.dumps(saved) + '\n')
  import orbax.checkpoint as ocp  # Imported late, so that decoding does not need Orbax.

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(half / 'arrays', arrays)
  half.rename(folder)


def load(folder: str | Path, check: Callable[[Any, Any], None]) -> tuple[Any, dict[str, Any]]:
  """Returns (cache, notes).

  Args:
    check: called before any array is read, with the cache as `described.read` returns it and with the notes; raises
      ValueError if the caller cannot use them.

  Raises:
    CheckpointError: the folder holds no cache, or a damaged one, or `check` refuses it; the message names the folder.
  """
  import orbax.checkpoint as ocp

  folder = Path(folder).absolute()
  try:
    saved = json.loads((folder / 'cache.json').read_text(encoding='utf-8'))
    if not isinstance(saved, dict) or set(saved) != {'cache', 'notes'}:
      raise ValueError('cache.json is no object of "cache" and "notes"')
    found: list[jax.ShapeDtypeStruct] = []
    abstract = described.read(saved['cache'], found)
    check(abstract, saved['notes'])
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {str(i): jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for i, x in enumerate(found)}
    with ocp.StandardCheckpointer() as checkpointer:
      _check_stored(checkpointer.metadata(folder / 'arrays'), wanted)
      arrays = checkpointer.restore(folder / 'arrays', wanted)
    names = {id(x): str(i) for i, x in enumerate(found)}
    return jax.tree.map(lambda x: arrays[names[id(x)]], abstract), saved['notes']
  except FileNotFoundError as e:
    raise CheckpointError(f'{folder} holds no saved cache: {e}.') from e
  except CheckpointError:
    raise
  except Exception as e:  # Orbax and TensorStore raise many types of errors for damaged files.
    raise CheckpointError(f'{folder} is no whole saved cache: {e}. Make it again.') from e


def _check_stored(metadata: Any, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
  """Raises ValueError if shapes on disk differ from those in cache.json: Orbax would pad or cut the arrays without an error."""
  tree = getattr(metadata, 'item_metadata', metadata)
  tree = getattr(tree, 'tree', tree)
  found = {name: tuple(x.shape) for name, x in (tree or {}).items()}
  for name, x in wanted.items():
    if found.get(name) != x.shape:
      raise ValueError(f'array {name} has shape {found.get(name)} on disk, and cache.json says {x.shape}')
  if more := sorted(set(found) - set(wanted)):
    raise ValueError(f'array {more[0]} is on disk, and cache.json does not say what it is')
