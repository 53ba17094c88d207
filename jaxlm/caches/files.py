"""Caches on disk: a folder with cache.json, which says what is where, and the arrays as Orbax writes them."""

import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

import jax

from jaxlm.cache_config import KiviConfig
from jaxlm.caches.full import FullCache
from jaxlm.caches.kivi import Quantized
from jaxlm.caches.layered import LayeredCache, PooledCache
from jaxlm.caches.packed import Packed
from jaxlm.caches.slots import Slots
from jaxlm.errors import CheckpointError

KINDS = {kind.__name__: kind for kind in (FullCache, LayeredCache, PooledCache, Slots, Packed, Quantized, KiviConfig)}


def save(folder: str | Path, cache: Any, notes: dict[str, Any]) -> None:
  """Writes a cache and JSON notes beside it, all or nothing. Raises FileExistsError if there is something already."""
  folder = Path(folder).absolute()
  if folder.exists():
    raise FileExistsError(f'{folder} is there already, and is not overwritten: remove it or choose another name.')
  half = folder.with_name(f'.{folder.name}.half')
  shutil.rmtree(half, ignore_errors=True)
  half.mkdir(parents=True)
  arrays: dict[str, jax.Array] = {}
  described = _described(cache, arrays)
  (half / 'cache.json').write_text(json.dumps({'cache': described, 'notes': notes}) + '\n')
  import orbax.checkpoint as ocp  # Here, so that decoding needs no Orbax.

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(half / 'arrays', arrays)
  half.rename(folder)


def load(folder: str | Path) -> tuple[Any, dict[str, Any]]:
  """Returns (cache, notes). Raises CheckpointError naming the folder if it holds no cache or a damaged one."""
  import orbax.checkpoint as ocp

  folder = Path(folder).absolute()
  try:
    saved = json.loads((folder / 'cache.json').read_text())
    abstract: dict[str, jax.ShapeDtypeStruct] = {}
    _collect(saved['cache'], abstract)
    with ocp.StandardCheckpointer() as checkpointer:
      arrays = checkpointer.restore(folder / 'arrays', abstract)
    return _built(saved['cache'], arrays), saved['notes']
  except FileNotFoundError as e:
    raise CheckpointError(f'{folder} holds no saved cache: {e}.') from e
  except Exception as e:  # Orbax and TensorStore raise whatever their storage does for bytes that are damaged.
    raise CheckpointError(f'{folder} is no whole saved cache: {e}. Make it again.') from e


def _described(x: Any, arrays: dict[str, jax.Array]) -> Any:
  """Returns x as JSON, its arrays put aside under numbers."""
  if dataclasses.is_dataclass(x):
    fields = {f.name: _described(getattr(x, f.name), arrays) for f in dataclasses.fields(x)}
    return {'kind': type(x).__name__, 'fields': fields}
  if isinstance(x, tuple):
    return [_described(item, arrays) for item in x]
  if isinstance(x, jax.Array):
    arrays[name] = x if (name := str(len(arrays))) else x
    return {'array': name, 'shape': x.shape, 'dtype': str(x.dtype)}
  return x


def _collect(x: Any, abstract: dict[str, jax.ShapeDtypeStruct]) -> None:
  if isinstance(x, list):
    for item in x:
      _collect(item, abstract)
  elif isinstance(x, dict) and 'array' in x:
    abstract[x['array']] = jax.ShapeDtypeStruct(
      tuple(x['shape']), x['dtype'], sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
  elif isinstance(x, dict):
    for item in x['fields'].values():
      _collect(item, abstract)


def _built(x: Any, arrays: dict[str, jax.Array]) -> Any:
  if isinstance(x, list):
    return tuple(_built(item, arrays) for item in x)
  if isinstance(x, dict) and 'array' in x:
    return arrays[x['array']]
  if isinstance(x, dict):
    return KINDS[x['kind']](**{name: _built(item, arrays) for name, item in x['fields'].items()})
  return x
