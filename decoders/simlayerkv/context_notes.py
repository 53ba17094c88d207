"""Checks of a saved context's notes, which are all its fields except the cache. They run before the cache is read."""

import math
from typing import Any

from jaxlm.caches.full import FullCache
from jaxlm.config import ModelConfig
from jaxlm.errors import shown

NAMES = ('ids', 'pending', 'room', 'model', 'stats')


def check_names(notes: Any) -> None:
  """Raises ValueError, naming the field, unless these are notes with the fields of a `Context`."""
  if not isinstance(notes, dict):
    raise ValueError(f'notes is {shown(notes)}; expected an object')
  if missing := [name for name in NAMES if name not in notes]:
    raise ValueError(f'notes.{missing[0]} is missing')
  if more := [name for name in notes if name not in NAMES]:
    raise ValueError(f'notes.{shown(more[0])} is no field of a context')
  for name in ('model', 'stats'):
    if not isinstance(notes[name], dict):
      raise ValueError(f'notes.{name} is {shown(notes[name])}; expected an object')


def check(notes: dict[str, Any], config: ModelConfig) -> None:
  """Raises ValueError, naming the field, unless these are the notes of a `Context` of a model of this config."""
  ids, V = notes['ids'], config.vocab_size
  if not isinstance(ids, list) or not ids or not all(isinstance(row, list) and row for row in ids):
    raise ValueError(f'notes.ids is {shown(ids)}; expected a list of token ids for each row')
  for i, row in enumerate(ids):
    if bad := [id for id in row if not _whole(id, 0, V - 1)]:
      raise ValueError(f'notes.ids[{i}] has {shown(bad[0])}; expected token ids from 0 to {V - 1}')
  longest = max(map(len, ids))
  if longest > config.max_length:
    raise ValueError(f'notes.ids has a row of {longest} tokens; the model reads {config.max_length}')
  for name, most in (('pending', 1), ('room', config.max_length - longest)):
    if not _whole(notes[name], 0, most):
      raise ValueError(f'notes.{name} is {shown(notes[name])}; expected a whole number from 0 to {most}')
  _check_stats(notes['stats'], len(ids), config.num_layers)


def check_room(cache: Any, notes: dict[str, Any]) -> None:
  """Raises ValueError if a cache that has a slot for each position has fewer than the notes promise."""
  longest, slots = max(map(len, notes['ids'])), cache.keys[0].shape[2] if isinstance(cache, FullCache) else math.inf
  if longest + notes['room'] > slots:
    raise ValueError(f'notes.room is {notes["room"]} behind {longest} tokens; the cache has {slots} slots')


def _check_stats(stats: dict[str, Any], rows: int, layers: int) -> None:
  """Raises ValueError if a statistic that a context uses or prints later is missing or has a wrong type or range."""
  lazy, ratios = stats.get('lazy_layers'), stats.get('lazy_ratios')
  of_rows = lambda x: isinstance(x, list) and len(x) == rows and all(isinstance(row, list) for row in x)
  if not of_rows(lazy) or not all(_whole(layer, 0, layers - 1) for row in lazy for layer in row):
    raise ValueError(f'notes.stats.lazy_layers is {shown(lazy)}; expected a list of layers for each of {rows} rows')
  if not of_rows(ratios) or not all(len(row) == layers and all(map(_number, row)) for row in ratios):
    raise ValueError(f'notes.stats.lazy_ratios is {shown(ratios)}; expected {layers} numbers for each of {rows} rows')
  for name in ('kv_bytes_full', 'compression', 'prefill_seconds', 'compile_seconds'):
    if not _number(stats.get(name)):
      raise ValueError(f'notes.stats.{name} is {shown(stats.get(name))}; expected a number of at least 0')


def _whole(x: Any, least: int, most: int) -> bool:
  return isinstance(x, int) and not isinstance(x, bool) and least <= x <= most


def _number(x: Any) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < math.inf
