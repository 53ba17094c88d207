"""Parses the header of a GGUF file: metadata, and name, shape, type and offset of every tensor. Tensor data is not read.

gguf.GGUFReader is not used, because it makes several arrays per string of the vocabulary, which takes seconds and too much
memory. Types, sizes and dequantisation come from the gguf package.
"""

import dataclasses
import math
from pathlib import Path
import struct
from typing import Any, BinaryIO

import numpy as np

from jaxlm.errors import CheckpointError

VERSIONS = (2, 3)
# Metadata type -> format character of `struct`; type 8 is a string, 9 an array.
_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Description of a tensor in a GGUF file; `rows` reads its data."""

  file: Path
  name: str
  kind: Any  # gguf.GGMLQuantizationType
  shape: tuple[int, ...]  # slowest axis first, unlike in the file
  offset: int
  nbytes: int

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns rows [start, stop), dequantised to float32. Raises CheckpointError for a type that is not known."""
    if len(self.shape) == 1:  # a vector is one row of blocks
      return self._read(self.offset, (self.nbytes,))[start:stop]
    width = self.nbytes // self.shape[0]
    return self._read(self.offset + start * width, (stop - start, width))

  def _read(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    import gguf

    with open(self.file, 'rb') as f:
      f.seek(offset)
      data = np.fromfile(f, np.uint8, math.prod(shape))
    if data.size < math.prod(shape):
      raise CheckpointError(f'{self.file} ended inside tensor {self.name!r}: it shrank while it was read.')
    try:
      return gguf.quants.dequantize(data.reshape(shape), self.kind)
    except NotImplementedError as e:  # The package gguf cannot read all types that its format has.
      raise CheckpointError(
        f'{self.file}: tensor {self.name!r} is stored as {self.kind.name}, which cannot be dequantised. '
        'Get the model as F16, BF16, Q8_0, Q6_K, Q4_K or Q4_0.'
      ) from e


class _Reader:
  """Reads a file's little-endian values in order. Every length is checked against the rest of the file."""

  def __init__(self, file: BinaryIO, size: int):
    self.file, self.size = file, size

  def bytes(self, n: int) -> bytes:
    if n > self.size - self.file.tell():
      raise EOFError(f'{n} bytes at {self.file.tell()} lie beyond its end')
    return self.file.read(n)

  def scalar(self, code: str) -> Any:
    return struct.unpack('<' + code, self.bytes(struct.calcsize('<' + code)))[0]

  def string(self) -> str:
    # Vocabularies may hold pieces that are not UTF-8.
    return self.bytes(self.scalar('Q')).decode('utf-8', errors='replace')

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.string()
    if kind == _ARRAY:
      kind, count = self.scalar('I'), self.scalar('Q')
      if kind in _SCALARS:
        dtype = np.dtype('<' + _SCALARS[kind])
        return np.frombuffer(self.bytes(count * dtype.itemsize), dtype).tolist()
      if count * 8 > self.size:  # strings and arrays begin with eight bytes at least
        raise EOFError(f'an array of {count} values lies beyond its end')
      return [self.value(kind) for _ in range(count)]
    if kind not in _SCALARS:
      raise ValueError(f'{kind} is no type of metadata')
    return self.scalar(_SCALARS[kind])


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """Returns (metadata as plain Python values, tensors by name). Raises CheckpointError that names a damaged file."""
  again = 'Download or copy it again.'
  try:
    size = path.stat().st_size
    with open(path, 'rb') as f:
      if (magic := f.read(4)) != b'GGUF':
        raise CheckpointError(f'{path} is not a GGUF file: it begins with {magic!r}. {again}')
      metadata, tensors = _parse(path, _Reader(f, size))
  except CheckpointError:
    raise
  except OSError as e:
    raise CheckpointError(f'{path} cannot be read: {e.strerror or e}.') from e
  except (EOFError, ValueError, TypeError, KeyError, ArithmeticError, MemoryError, RecursionError) as e:
    raise CheckpointError(f'{path} ({size} bytes) is a truncated or corrupt GGUF file: {e}. {again}') from e
  for tensor in tensors.values():
    if tensor.offset + tensor.nbytes > size:
      end = tensor.offset + tensor.nbytes
      raise CheckpointError(f'{path} is truncated: it has {size} bytes, tensor {tensor.name!r} ends at {end}. {again}')
  return metadata, tensors


def _parse(path: Path, reader: _Reader) -> tuple[dict[str, Any], dict[str, Tensor]]:
  import gguf

  version = reader.scalar('I')
  if version not in VERSIONS:
    hint = ' (big-endian files are not read)' if version & 0xFFFF == 0 else ''
    raise ValueError(f'its version is {version}, versions {VERSIONS} are known{hint}')
  tensor_count, field_count = reader.scalar('Q'), reader.scalar('Q')
  metadata = {}
  for _ in range(field_count):
    key = reader.string()
    metadata[key] = reader.value(reader.scalar('I'))
  found = []
  for _ in range(tensor_count):
    name = reader.string()
    shape = tuple(reader.scalar('Q') for _ in range(reader.scalar('I')))[::-1]
    kind = gguf.GGMLQuantizationType(reader.scalar('I'))
    found.append((name, kind, shape, reader.scalar('Q')))
  alignment = metadata.get('general.alignment', gguf.GGUF_DEFAULT_ALIGNMENT)
  if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
    raise ValueError(f'general.alignment={str(alignment)[:100]} is no number of bytes')
  start = -(-reader.file.tell() // alignment) * alignment
  tensors = {}
  for name, kind, shape, offset in found:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block:
      raise ValueError(f'tensor {name!r} of shape {shape} cannot be stored as {kind.name}')
    tensors[name] = Tensor(path, name, kind, shape, start + offset, math.prod(shape) // block * nbytes)
  return metadata, tensors
