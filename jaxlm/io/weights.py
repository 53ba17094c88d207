"""Converts tensors of Hugging Face and GGUF files to parameters on devices, and back, one tensor at a time.

A file's layout of a parameter is a string of axis letters, with commas between the file's dimensions: 'NH,D' is the matrix
[N*H, D] of a PyTorch projection, which is [D, N, H] in jaxlm. A digit is an index into an axis of size three: 'D,1NH' is the
middle third (the keys) of a fused [D, 3*N*H]. In 'Nht,D', the two halves of every head are interleaved (h = H/2, t = 2).
Letters: V vocabulary, P positions, D model, N query heads, K key/value heads, H head, F MLP.

Host memory holds the loaded parameters plus one block: a tensor is read in blocks of rows directly into an array in jaxlm's
layout. The array is aligned, so XLA's CPU client uses it without a copy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxlm import errors
from jaxlm.config import ModelConfig
from jaxlm.io import FROM_FILES
from jaxlm.io.safetensors_files import Pending

BLOCK_BYTES = 1 << 24
_ALIGNMENT = 64  # XLA's CPU client copies arrays that are aligned less.

# jaxlm's axes of a parameter, by the last two names of its path; all other parameters are vectors [D].
_OUR_AXES = {
  'embed/embedding': 'VD',
  'position_embed/embedding': 'PD',
  'output_bias': 'V',
  'head': 'DV',
  'q/kernel': 'DNH',
  'k/kernel': 'DKH',
  'v/kernel': 'DKH',
  'q/bias': 'NH',
  'k/bias': 'KH',
  'v/bias': 'KH',
  'o/kernel': 'NHD',
  'q_norm/scale': 'H',
  'k_norm/scale': 'H',
  'up/kernel': 'DF',
  'gate/kernel': 'DF',
  'down/kernel': 'FD',
  'up/bias': 'F',
  'gate/bias': 'F',
}


class FileTensor(Protocol):
  """A tensor that has not been read yet."""

  file: Path
  shape: tuple[int, ...]

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns rows [start, stop) of the first dimension."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """Tensor name and layout of a parameter in a file."""

  path: str  # path of jaxlm's parameter, 'layer_0/attention/q/kernel'
  name: str  # name of the file's tensor, 'model.layers.0.self_attn.q_proj.weight'
  axes: str  # layout of the file's tensor, 'NH,D'
  skip: int = 0  # rows of the file's tensor before the parameter begins
  shift: float = 0.0  # added to the file's numbers when they are read

  @property
  def letters(self) -> str:
    return self.axes.replace(',', '')


class Layout:
  """Shapes and views of a config's parameters, in jaxlm's layout and in a file's layout."""

  def __init__(self, config: ModelConfig):
    c = config
    named = {'V': c.vocab_size, 'P': c.max_length, 'D': c.model_dim, 'N': c.num_heads, 'K': c.num_kv_heads}
    self.size = named | {'H': c.head_dim, 'F': c.mlp_dim, 'h': c.head_dim // 2, 't': 2} | dict.fromkeys('012', 3)

  def shape(self, letters: str) -> tuple[int, ...]:
    return tuple(self.size[letter] for letter in letters)

  def our_axes(self, path: str) -> str:
    return _OUR_AXES.get('/'.join(path.split('/')[-2:]), 'D')

  def our_shape(self, path: str) -> tuple[int, ...]:
    return self.shape(self.our_axes(path))

  def file_shape(self, entry: Entry) -> tuple[int, ...]:
    first, *rest = (math.prod(self.shape(dimension)) for dimension in entry.axes.split(','))
    return (first + entry.skip, *rest)

  def in_file_order(self, array: np.ndarray, entry: Entry) -> np.ndarray:
    """Returns a view of a parameter with one axis per letter of the file's layout, without digits."""
    ours = self.our_axes(entry.path)
    if 'h' in entry.axes:
      ours = ours.replace('H', 'th')
    order = [ours.index(letter) for letter in entry.letters if not letter.isdigit()]
    return array.reshape(self.shape(ours)).transpose(order)

  def read(self, entry: Entry, tensor: FileTensor, dtype) -> np.ndarray:
    """Returns the parameter in jaxlm's layout. Raises CheckpointError if the file ends early."""
    out = _aligned_empty(self.our_shape(entry.path), dtype)
    target = self.in_file_order(out, entry)
    letters, first = entry.letters, entry.axes.split(',')[0]
    pick = tuple(int(letter) if letter.isdigit() else slice(None) for letter in letters)
    lead = self.size[letters[0]]
    rows = math.prod(self.shape(first[1:]))  # of the file, per step along the leading letter
    step = lead if letters[0].isdigit() else max(1, BLOCK_BYTES // (4 * math.prod(self.shape(letters[1:]))))
    for start in range(0, lead, step):
      stop = min(start + step, lead)
      block = tensor.rows(entry.skip + start * rows, entry.skip + stop * rows)
      block = block.reshape(stop - start, *self.shape(letters[1:]))
      block = block + np.float32(entry.shift) if entry.shift else block
      if letters[0].isdigit():
        target[...] = block[pick]
      else:
        target[start:stop] = block[pick]
    return out

  def write(self, entries: Sequence[Entry], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the contiguous tensor of a file. There are several entries if the file fuses several parameters into it."""
    shape = self.file_shape(entries[0])
    out = np.zeros(shape, arrays[0].dtype)
    for entry, array in zip(entries, arrays, strict=True):
      pick = tuple(int(letter) if letter.isdigit() else slice(None) for letter in entry.letters)
      out[entry.skip :].reshape(self.shape(entry.letters))[pick] = self.in_file_order(array, entry)
    return out


def _aligned_empty(shape: Sequence[int], dtype) -> np.ndarray:
  nbytes = math.prod(shape) * np.dtype(dtype).itemsize
  buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + nbytes].view(dtype).reshape(shape)


def load(
  config: ModelConfig, entries: Sequence[Entry], tensors: Mapping[str, FileTensor], dtype: str, mesh: Any = None
) -> dict[str, Any]:
  """Returns the parameter tree. Each leaf is read, converted and placed on its devices before the next one is read.

  Raises CheckpointError for the first parameter that is missing or does not have the config's shape, and for tensors that
  belong to no parameter.
  """
  from jaxlm.models.sharding import sharding

  layout = Layout(config)
  check(layout, entries, tensors)
  params: dict[str, Any] = {}
  for entry in entries:
    host = layout.read(entry, tensors[entry.name], dtype)
    *parents, leaf = names = entry.path.split('/')
    if mesh is None:
      array = jax.device_put(host)
    else:
      where = sharding(names, host.shape, mesh)
      array = jax.make_array_from_callback(host.shape, where, lambda index, host=host: host[index])
    node = params
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = jax.block_until_ready(array)  # Frees the host copy before the next one is made.
  return params


def check(layout: Layout, entries: Iterable[Entry], tensors: Mapping[str, FileTensor]) -> None:
  """Raises CheckpointError unless names and shapes of the tensors are exactly those of the entries."""
  unused = dict(tensors)
  where = _files(tensors)
  for entry in entries:
    tensor = tensors.get(entry.name)
    wanted = layout.file_shape(entry)
    if tensor is None:
      raise errors.CheckpointError(
        f'{where}: parameter {entry.path} is missing: there is no tensor {entry.name!r} (shape {wanted}). '
        'The weights and the config do not belong together, or a file is incomplete.'
      )
    if tuple(tensor.shape) != wanted:
      raise errors.CheckpointError(
        f'{tensor.file}: parameter {entry.path} does not fit the config: tensor {entry.name!r} has shape '
        f'{tuple(tensor.shape)}, the config asks for {wanted}.'
      )
    unused.pop(entry.name, None)
  if unused:
    names = ', '.join(sorted(unused)[:5]) + (f' and {len(unused) - 5} more' if len(unused) > 5 else '')
    raise errors.CheckpointError(f'{where}: unexpected tensors that the config has no parameter for: {names}.')


def pending(config: Any, entries: Iterable[Entry], params: Any) -> list[Pending]:
  """Returns a file's tensors, to be made one at a time. Raises ValueError if a parameter has another shape than the config's."""
  layout = Layout(config)
  leaves = {'/'.join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  groups: dict[str, list[Entry]] = {}
  for entry in entries:
    wanted, got = layout.our_shape(entry.path), getattr(leaves.get(entry.path), 'shape', None)
    if got != wanted:
      raise ValueError(f'Parameter {entry.path} has shape {got}, the config asks for {wanted}.')
    groups.setdefault(entry.name, []).append(entry)
  found = []
  for name, group in groups.items():
    parts = [leaves[entry.path] for entry in group]
    make = lambda group=group, parts=parts: layout.write(group, [np.asarray(part) for part in parts])
    found.append(Pending(name, np.dtype(parts[0].dtype), layout.file_shape(group[0]), make))
  return found


def _files(tensors: Mapping[str, FileTensor]) -> str:
  files = sorted({str(tensor.file) for tensor in tensors.values()})
  return files[0] if len(files) == 1 else f'{files[0]} and {len(files) - 1} more files' if files else 'the weights'


def own_tokenizer(read: Callable[[], Any], given: Any, config: ModelConfig, path: Path) -> Any:
  """Returns `given` if the caller passed a tokenizer or None, else the tokenizer that `read` returns.

  Raises CheckpointError if it cannot be read or does not fit the model; the message says how to load without it.
  """
  chosen = not (isinstance(given, str) and given == FROM_FILES)
  try:
    tokenizer = given if chosen else read()
  except ValueError as e:
    raise errors.CheckpointError(
      f'{e} The weights can be used without it: jaxlm.load(..., tokenizer=None), or give another tokenizer there.'
    ) from e
  check_tokenizer(tokenizer, config, path)
  return tokenizer


def check_tokenizer(tokenizer: Any, config: ModelConfig, path: Path) -> None:
  """Raises CheckpointError if the tokenizer has ids that the model does not."""
  if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
    raise errors.CheckpointError(
      f'{path}: the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size} '
      '(vocab_size): they do not belong together.'
    )
