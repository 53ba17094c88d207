"""Sets of sub-layers that a model skips while it drafts, and the files that keep them. This file does not import JAX.

A skipped sub-layer (attention or MLP) adds nothing to the residual stream. The first and the last layer always run, so a model of L
layers has d = 2 (L - 2) sub-layers that can be skipped (SWIFT, https://arxiv.org/abs/2410.06916).
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import DataError, shown
from jaxlm.io.atomic import write_atomically


@dataclasses.dataclass(frozen=True)
class SkipSet:
  """The layers whose attention or MLP is skipped; its length is the number of sub-layers skipped."""

  attention: tuple[int, ...] = ()
  """Layers whose attention is skipped."""
  mlp: tuple[int, ...] = ()
  """Layers whose MLP is skipped."""

  def __post_init__(self):
    for name in ('attention', 'mlp'):
      layers = sorted(int(i) for i in getattr(self, name))
      if twice := [a for a, b in zip(layers, layers[1:]) if a == b]:
        raise ValueError(f'{name} names layer {twice[0]} twice.')
      object.__setattr__(self, name, tuple(layers))  # sorted, so that equal sets are equal values

  def __len__(self) -> int:
    return len(self.attention) + len(self.mlp)

  def check(self, num_layers: int) -> None:
    """Raises ValueError if a model of `num_layers` layers cannot skip this set, or is too small: see `num_skippable`."""
    num_skippable(num_layers)
    for name in ('attention', 'mlp'):
      for layer in getattr(self, name):
        if not 0 <= layer < num_layers:
          raise ValueError(f'{name} names layer {layer}; the model has layers 0 to {num_layers - 1}.')
        if layer in (0, num_layers - 1):
          raise ValueError(f'{name} names layer {layer}: the first and the last of {num_layers} layers always run.')

  def vector(self, num_layers: int) -> np.ndarray:
    """Returns [d] bool, True if skipped: attention of layers 1 to L-2, then MLP of the same layers. Raises as `check`."""
    return ~self.keep(num_layers)[:, 1:-1].reshape(-1)

  def keep(self, num_layers: int) -> np.ndarray:
    """Returns [2, L] bool, True if the sub-layer runs: row 0 attention, row 1 MLP. Raises as `check`."""
    self.check(num_layers)
    keep = np.ones((2, num_layers), bool)
    keep[0, list(self.attention)] = False
    keep[1, list(self.mlp)] = False
    return keep

  @classmethod
  def of(cls, vector, num_layers: int) -> 'SkipSet':
    """Returns the set of a [d] vector: the inverse of `vector`. Raises ValueError for another length."""
    vector = np.asarray(vector, bool)
    if vector.shape != (num_skippable(num_layers),):
      raise ValueError(f'{num_layers} layers have {num_skippable(num_layers)} sub-layers to skip, not {vector.shape}.')
    attention, mlp = vector.reshape(2, -1)
    return cls(tuple(np.flatnonzero(attention) + 1), tuple(np.flatnonzero(mlp) + 1))


def num_skippable(num_layers: int) -> int:
  """Returns d = 2 (L - 2). Raises ValueError for fewer than 4 layers, for which a search is not worth its time."""
  if num_layers < 4:
    raise ValueError(
      f'A model of {num_layers} layers is too shallow to draft for itself by skipping: the first and the last always '
      'run, and at least two should remain.'
    )
  return 2 * (num_layers - 2)


def uniform(num_layers: int) -> SkipSet:
  """Returns the set that the authors' code starts from: both sub-layers of layers 1, 3, ... below L-1."""
  num_skippable(num_layers)
  odd = tuple(range(1, num_layers - 1, 2))
  return SkipSet(odd, odd)


def spread(num_layers: int, weights, budget: float) -> np.ndarray:
  """Returns [d] bool: both sub-layers of evenly spread layers, as many as the budget allows; of the last layer maybe only one."""
  middle = num_layers - 2
  # Bit-reversed order: each layer is as far as possible from those before it.
  bits = max(1, (middle - 1).bit_length())
  order = [r for r in (int(f'{i:0{bits}b}'[::-1], 2) for i in range(1 << bits)) if r < middle]
  sublayers = [x for layer in order for x in (layer, middle + layer)]
  return pack([sublayers], np.asarray(weights, float), budget)[0]


def pack(order, weights, budget: float) -> np.ndarray:
  """Returns [P, d] bool sets. For each row, sub-layers are taken in its `order` [P, d] if they fit the rest of the budget.

  With all `weights` [d] equal to 1, the first `budget` sub-layers are taken. No further sub-layer fits any set.
  """
  order = np.asarray(order)
  taken, left, rows = np.zeros(order.shape, bool), np.full(len(order), float(budget)), np.arange(len(order))
  for column in order.T:
    fits = weights[column] <= left
    taken[rows, column] = fits
    left -= weights[column] * fits
  return taken


def draw(rng: np.random.Generator, count: int, weights, budget: float) -> np.ndarray:
  """Returns [count, d] bool: random sets that fill the budget as `pack` does."""
  return pack(np.argsort(rng.random((count, len(weights))), axis=1), weights, budget)


def vary(rng: np.random.Generator, count: int, parents, weights, budget: float) -> np.ndarray:
  """Returns [count, d] bool: copies of random `parents` [n, d], each with one or two sub-layers replaced by others."""
  members = parents[rng.integers(len(parents), size=count)]
  keys = rng.random(members.shape) + ~members  # Members come first, in random order; the first one or two are replaced.
  given_up = np.argsort(keys, axis=1)[:, :2]
  keys[np.arange(count), given_up[:, 0]] = 2
  two = np.flatnonzero(rng.random(count) < 0.5)
  keys[two, given_up[two, 1]] = 2
  return pack(np.argsort(keys, axis=1), weights, budget)


def load(
  path: str | Path, key: str, num_layers: int, fingerprint: Mapping | None = None
) -> tuple[SkipSet, float | None] | None:
  """Returns (the set saved under `key`, its score), or None if the file or the key does not exist.

  Args:
    key: names model and task, as 'model/task'.
    fingerprint: more JSON values that identify the model, as given to `save`.

  Raises:
    DataError: `save` did not write the file.
    ValueError: the set was found for a model with another number of layers or fingerprint; the message shows both.
  """
  entry = _read(Path(path)).get(key)
  if entry is None:
    return None
  try:
    found, skip_set, score = _entry(entry)
  except ValueError as e:
    raise DataError(f'{path} has no skip set under {key!r}, but {shown(entry, 80)}: {e}.') from e
  if (model := _model(num_layers, fingerprint)) != found:
    raise ValueError(
      f'The skip set {key!r} of {path} was found for another model, {json.dumps(found)}; this one is '
      f'{json.dumps(model)}. Use another key, or search anew.'
    )
  try:
    skip_set.check(num_layers)
  except ValueError as e:
    raise DataError(f'{path} has no skip set of this model under {key!r}: {e}') from e
  return skip_set, score


def _entry(entry: Any) -> tuple[dict, SkipSet, float | None]:
  """Returns (model, set, score) of an entry of the file. Raises ValueError, naming the field, if `save` did not write it."""
  if not isinstance(entry, dict):
    raise ValueError('expected an object')
  for name in ('attention', 'mlp'):
    layers = entry.get(name)
    if not isinstance(layers, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in layers):
      raise ValueError(f'{name} is {shown(layers, 80)}, expected a list of layers')
  model, score = entry.get('model'), entry.get('score')
  if not isinstance(model, dict):
    raise ValueError(f'model is {shown(model, 80)}, expected an object')
  if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
    raise ValueError(f'score is {shown(score, 80)}, expected a number from 0 to 1, or null')
  return model, SkipSet(tuple(entry['attention']), tuple(entry['mlp'])), score


def check_writable(path: str | Path) -> None:
  """Raises OSError if `save` could not write. Called before a search, whose result would otherwise be lost."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.is_dir() or not os.access(path.parent, os.W_OK):
    raise PermissionError(f'Skip sets cannot be written to {path}: it is a folder, or its folder cannot be written.')


def save(
  path: str | Path,
  key: str,
  skip_set: SkipSet,
  num_layers: int,
  fingerprint: Mapping | None = None,
  score: float | None = None,
) -> None:
  """Writes a set under `key` of a JSON file and keeps the sets of other keys. For arguments and errors see `load`."""
  skip_set.check(num_layers)
  path = Path(path)
  with _locked(path):
    sets = _read(path)
    sets[key] = {**dataclasses.asdict(skip_set), 'model': _model(num_layers, fingerprint), 'score': score}
    write_atomically(path, json.dumps(sets, indent=1) + '\n')


@contextlib.contextmanager
def _locked(path: Path):
  """Context in which no other process or thread writes the file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # Not every file system has locks.
      fcntl.flock(folder, fcntl.LOCK_EX)
    yield
  finally:
    os.close(folder)


def _model(num_layers: int, fingerprint: Mapping | None) -> dict:
  return json.loads(json.dumps({'num_layers': num_layers, **(fingerprint or {})}))  # lists, as in the file


def _read(path: Path) -> dict:
  try:
    sets = json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except ValueError as e:  # The file is not JSON, or not text.
    raise DataError(f'{path} is not a JSON file of skip sets: {e}. Repair it or move it away.') from e
  if not isinstance(sets, dict):
    raise DataError(f'{path} is not a JSON file of skip sets: it holds a {type(sets).__name__}. Move it away.')
  return sets
