"""Reading a config from JSON. The type and the range of every field are checked."""

import dataclasses
import math
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxlm import errors

Config = TypeVar('Config')
LARGEST = 100_000_000
"""Largest integer accepted in a config. Real vocabularies are about 100 times smaller, real contexts about 10 times."""
MOST_LAYERS = 10_000


def read(kind: type[Config], fields: Any, where: str) -> Config:
  """Returns the config that `jaxlm.config.to_dict` wrote. A missing field gets its default.

  Raises:
    ValueError: a field is unknown, or its value has the wrong type or is out of range; the message names field and value.
  """
  if not isinstance(fields, dict):
    raise ValueError(f'{where} is {errors.shown(fields)}; expected an object.')
  hints = get_type_hints(kind)
  for name in fields:
    if name not in hints:
      raise errors.unknown(f'{where} config field', name, hints)
  return kind(**{name: _value(hints[name], value, f'{where}.{name}') for name, value in fields.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
  """Returns a JSON value converted to a field's type. Raises ValueError under the same conditions as `read`."""
  if dataclasses.is_dataclass(hint):
    return read(hint, value, where)
  if get_origin(hint) is tuple:
    if not isinstance(value, list):
      raise ValueError(f'{where} is {errors.shown(value)}; expected a list.')
    return tuple(_value(get_args(hint)[0], item, f'{where}[{i}]') for i, item in enumerate(value))
  kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
  if not any(_is(kind, value) for kind in kinds):
    raise ValueError(f'{where} is {errors.shown(value)}; expected {" or ".join(map(_name, kinds))}.')
  most = MOST_LAYERS if where.endswith('.num_layers') else LARGEST
  if int in kinds and isinstance(value, int) and abs(value) > most:
    raise ValueError(f'{where}={errors.shown(value)} is out of range: at most {most} is read.')
  return float(value) if float in kinds and type(value) is int else value


def _is(kind: Any, value: Any) -> bool:
  if get_origin(kind) is Literal:
    return isinstance(value, str) and value in get_args(kind)
  if kind is float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 1e29 and not math.isnan(value)
  return type(value) is kind


def _name(kind: Any) -> str:
  if get_origin(kind) is Literal:
    return f'one of {", ".join(map(repr, get_args(kind)))}'
  return {int: 'a whole number', float: 'a number', bool: 'true or false', type(None): 'null'}.get(kind, kind.__name__)
