"""Converts the structure of a cache to JSON and back, and checks it against a model. No array is read or allocated.

A file may be damaged or hostile, so kinds, types and sizes are checked against the model before an array is allocated.
"""

import dataclasses
import math
from typing import Any

import jax

from jaxlm.cache_config import KiviConfig
from jaxlm.caches.full import FullCache
from jaxlm.caches.kivi import Quantized
from jaxlm.caches.layered import LayeredCache, PooledCache
from jaxlm.caches.packed import Packed
from jaxlm.caches.slots import Slots
from jaxlm.config import ModelConfig
from jaxlm.errors import shown

KINDS = {kind.__name__: kind for kind in (FullCache, LayeredCache, PooledCache, Slots, Packed, Quantized, KiviConfig)}
DTYPES = ('float32', 'bfloat16', 'float16', 'int32', 'uint8')
MOST = 2**31


def described(x: Any, arrays: dict[str, jax.Array]) -> Any:
  """Returns x as JSON. Its arrays are moved into `arrays` under consecutive numbers."""
  if dataclasses.is_dataclass(x):
    fields = {f.name: described(getattr(x, f.name), arrays) for f in dataclasses.fields(x)}
    return {'kind': type(x).__name__, 'fields': fields}
  if isinstance(x, tuple):
    return [described(item, arrays) for item in x]
  if isinstance(x, jax.Array):
    arrays[name] = x if (name := str(len(arrays))) else x
    return {'array': name, 'shape': x.shape, 'dtype': str(x.dtype)}
  return x


def read(saved: Any, arrays: list[jax.ShapeDtypeStruct]) -> Any:
  """Returns the cache that JSON describes, with a jax.ShapeDtypeStruct for each array, and appends these to `arrays`.

  Raises:
    ValueError: `saved` does not describe a cache; the message names the field.
  """
  return _read(saved, 'cache', arrays)


def _read(x: Any, where: str, arrays: list[jax.ShapeDtypeStruct]) -> Any:
  if isinstance(x, list):
    return tuple(_read(item, f'{where}[{i}]', arrays) for i, item in enumerate(x))
  if isinstance(x, bool | int | None):
    return x
  if not isinstance(x, dict):
    raise ValueError(f'{where} is {shown(x)}; expected an object, a list, a whole number, true, false or null')
  if 'array' in x:
    arrays.append(_read_array(x, where, len(arrays)))
    return arrays[-1]
  kind, fields = x.get('kind'), x.get('fields')
  if not isinstance(kind, str) or kind not in KINDS:
    raise ValueError(f'{where}.kind is {shown(kind)}; expected one of {", ".join(KINDS)}')
  if not isinstance(fields, dict):
    raise ValueError(f'{where}.fields is {shown(fields)}; expected an object')
  known = {f.name: f for f in dataclasses.fields(KINDS[kind])}
  for name, field in known.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise ValueError(f'{where}.{name} is missing')
  if more := [name for name in fields if name not in known]:
    raise ValueError(f'{where}.{shown(more[0])} is no field of {kind}')
  values = {name: _read(value, f'{where}.{name}', arrays) for name, value in fields.items()}
  try:
    return KINDS[kind](**values)
  except (TypeError, ValueError) as e:
    raise ValueError(f'{where} is no {kind}: {e}') from e


def _read_array(x: dict[str, Any], where: str, number: int) -> jax.ShapeDtypeStruct:
  if x['array'] != str(number):
    raise ValueError(f'{where}.array is {shown(x["array"])}; expected {str(number)!r}')
  shape, dtype = x.get('shape'), x.get('dtype')
  if not isinstance(shape, list) or not all(_whole(n, 0) for n in shape) or math.prod(shape) > MOST:
    raise ValueError(f'{where}.shape is {shown(shape)}; expected whole numbers whose product is at most {MOST}')
  if dtype not in DTYPES:
    raise ValueError(f'{where}.dtype is {shown(dtype)}; expected one of {", ".join(DTYPES)}')
  return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _whole(x: Any, least: int) -> bool:
  return isinstance(x, int) and not isinstance(x, bool) and least <= x < MOST


def check(cache: Any, config: ModelConfig, rows: int) -> None:
  """Raises ValueError that names the field if a cache from `read` does not fit the model or does not have `rows` rows."""
  L, per_layer = config.num_layers, lambda x: isinstance(x, tuple) and len(x) == config.num_layers
  if isinstance(cache, FullCache):
    for name in ('keys', 'values', 'empty'):
      if not per_layer(getattr(cache, name)):
        raise ValueError(f'cache.{name} is no list of {L} layers, which the model has')
    slots = _axis(cache.keys[0], 2, 'cache.keys[0]')
    for name in ('keys', 'values'):
      for i, array in enumerate(getattr(cache, name)):
        _expect(array, (rows, config.num_kv_heads, slots, config.head_dim), config.dtype, f'cache.{name}[{i}]')
    if any(empty is not False for empty in cache.empty):
      raise ValueError(f'cache.empty is {shown(cache.empty)}; expected false for each layer')
  elif isinstance(cache, LayeredCache):
    if not per_layer(cache.layers):
      raise ValueError(f'cache.layers is no list of {L} layers, which the model has')
    for i, memory in enumerate(cache.layers):
      _check_memory(memory, config, rows, f'cache.layers[{i}]')
  elif isinstance(cache, PooledCache):
    if not isinstance(cache.pools, tuple) or not cache.pools:
      raise ValueError(f'cache.pools is {shown(cache.pools)}; expected a list')
    pooled = [_check_memory(memory, config, None, f'cache.pools[{i}]') for i, memory in enumerate(cache.pools)]
    if sum(pooled) != L * rows:
      raise ValueError(f'cache.pools have {sum(pooled)} rows; {L} layers of {rows} texts have {L * rows}')
    for name in ('kind', 'row'):
      _expect(getattr(cache, name), (L, rows), 'int32', f'cache.{name}')
  else:
    raise ValueError(f'cache.kind is {type(cache).__name__}; expected FullCache, LayeredCache or PooledCache')
  if getattr(cache, 'valid', None) is not None:
    raise ValueError('cache.valid is not null')


def _check_memory(memory: Any, config: ModelConfig, rows: int | None, where: str) -> int:
  """Checks the memory of one layer, or a pool if `rows` is None. Returns its number of rows; raises as `check` does."""
  if not isinstance(memory, Slots | Packed):
    raise ValueError(f'{where} is {type(memory).__name__}; expected Slots or Packed')
  K, H = config.num_kv_heads, config.head_dim
  R = _axis(memory.evicted, 0, f'{where}.evicted') if rows is None else rows
  C = _axis(memory.positions, -1, f'{where}.positions')
  _expect(memory.evicted, (R,), 'int32', f'{where}.evicted')
  _expect(memory.positions, (R, K, C) if len(memory.positions.shape) == 3 else (R, C), 'int32', f'{where}.positions')
  if isinstance(memory, Slots):
    for name in ('keys', 'values'):
      _expect(getattr(memory, name), (R, K, C, H), config.dtype, f'{where}.{name}')
    if not _whole(memory.initial, 0) or memory.initial > C:
      raise ValueError(f'{where}.initial is {shown(memory.initial)}; expected 0 to {C}')
    if memory.recent is not None and (not _whole(memory.recent, 1) or memory.initial + memory.recent > C):
      raise ValueError(f'{where}.recent is {shown(memory.recent)}; expected null, or 1 to {C - memory.initial}')
    return R
  c = memory.config
  if not isinstance(c, KiviConfig) or not all(_whole(x, 1) for x in (c.bits, c.group, c.residual)):
    raise ValueError(f'{where}.config is {shown(c)}; expected whole numbers for bits, group and residual')
  c.check_head_dim(H)
  if C % c.residual:
    raise ValueError(f'{where}.positions are of {C} slots, which {c} does not divide')
  coded, kept = H * c.bits // 8, 'bfloat16' if config.dtype == 'bfloat16' else 'float16'
  shapes = {'keys': ((R, K, C, coded), (R, K, C // c.group, H)), 'values': ((R, K, coded, C), (R, K, H // c.group, C))}
  for name, (codes, scale) in shapes.items():
    part = getattr(memory, name)
    if not isinstance(part, Quantized):
      raise ValueError(f'{where}.{name} is {type(part).__name__}; expected Quantized')
    _expect(part.codes, codes, 'uint8', f'{where}.{name}.codes')
    for array in ('scale', 'minimum'):
      _expect(getattr(part, array), scale, kept, f'{where}.{name}.{array}')
    if part.bits is True or part.bits != c.bits or part.tokens_last is not (name == 'values'):
      raise ValueError(
        f'{where}.{name} has bits={part.bits!r} and tokens_last={part.tokens_last!r}, which {c} does not'
      )
  _expect(memory.key_tail, (R, K, c.residual, H), config.dtype, f'{where}.key_tail')
  _expect(memory.value_tail, (R, K, c.residual + 1, H), config.dtype, f'{where}.value_tail')
  return R


def _axis(x: Any, axis: int, where: str) -> int:
  if not isinstance(x, jax.ShapeDtypeStruct) or len(x.shape) <= max(axis, 0) or x.shape[axis] < 1:
    raise ValueError(f'{where} is {shown(x)}; expected an array that is not empty')
  return x.shape[axis]


def _expect(x: Any, shape: tuple[int, ...], dtype: str, where: str) -> None:
  if not isinstance(x, jax.ShapeDtypeStruct) or x.shape != shape or x.dtype != dtype:
    raise ValueError(f'{where} is {shown(x)}; expected an array of {dtype} {shape}')
