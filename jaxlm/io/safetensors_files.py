"""Reads and writes safetensors files: a JSON header of names, dtypes, shapes and byte ranges, then the data.

The safetensors package is not used, because it maps or holds whole files. A mapped page counts as resident memory, and loading
should need no more memory than the parameters.
"""

from collections.abc import Callable, Iterable
import dataclasses
import json
import math
from pathlib import Path
import struct
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxlm.errors import CheckpointError

DTYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
_SIZES = {'F64': 8, 'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'I32': 4, 'I16': 2, 'I8': 1, 'U8': 1, 'BOOL': 1}
_DOWNLOAD_AGAIN = 'Download or copy it again.'


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Description of a tensor in a file; `rows` reads its data."""

  file: Path
  name: str
  dtype: str
  shape: tuple[int, ...]
  offset: int

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Returns rows [start, stop) of the first dimension. Raises CheckpointError if the file ends before them."""
    if self.dtype not in DTYPES:
      raise CheckpointError(
        f'{self.file}: tensor {self.name!r} is stored as {self.dtype}; weights are read as {", ".join(DTYPES)}.'
      )
    dtype = np.dtype(DTYPES[self.dtype])
    width = math.prod(self.shape[1:])
    with open(self.file, 'rb') as f:
      f.seek(self.offset + start * width * dtype.itemsize)
      data = np.fromfile(f, dtype, (stop - start) * width)
    if data.size < (stop - start) * width:
      raise CheckpointError(f'{self.file} ended inside tensor {self.name!r}: it shrank while it was read.')
    return data.reshape(stop - start, *self.shape[1:])


def read_header(path: Path) -> dict[str, Tensor]:
  """Returns a file's tensors by name. Raises CheckpointError that names the file if it is truncated or not safetensors."""
  try:
    size = path.stat().st_size
    with open(path, 'rb') as f:
      start = f.read(8)
      length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
      text = f.read(length) if 2 <= length <= min(size - 8, 1 << 28) else b''
  except OSError as e:
    raise CheckpointError(f'{path} cannot be read: {e.strerror or e}.') from e
  if start.startswith(b'version '):
    raise CheckpointError(f'{path} is a Git LFS pointer, not the weights themselves: run `git lfs pull` there.')
  if start.startswith((b'PK\x03\x04', b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05')):
    raise CheckpointError(f'{path} is a pickle, not safetensors; pickles run code when they are read, so it is not.')
  if not text.startswith(b'{'):
    # A safetensors file that was cut inside its header still begins with a plausible header length.
    cut = len(start) < 8 or (size - 8 < length < 1 << 28)
    what = 'is truncated inside its header' if cut else 'is not a safetensors file'
    raise CheckpointError(f'{path} ({size} bytes) {what}. {_DOWNLOAD_AGAIN}')
  try:
    header = json.loads(text)
    header.pop('__metadata__', None)
    tensors, end = {}, 8 + length
    for name, field in header.items():
      first, last = field['data_offsets']
      shape = tuple(field['shape'])
      if any(type(n) is not int or n < 0 for n in (first, last, *shape)):
        raise ValueError(f'tensor {name!r} has numbers that are no sizes')
      nbytes = math.prod(shape) * _SIZES.get(field['dtype'], 0)
      if not 0 <= first <= last or (nbytes and nbytes != last - first):
        raise ValueError(f'tensor {name!r} of shape {shape} cannot lie in bytes {first} to {last}')
      tensors[name] = Tensor(path, name, field['dtype'], shape, 8 + length + first)
      end = max(end, 8 + length + last)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    raise CheckpointError(f'{path} has a corrupt header: {e}. {_DOWNLOAD_AGAIN}') from e
  if end != size:
    what = 'truncated' if size < end else 'corrupt'
    raise CheckpointError(f'{path} is {what}: it has {size} bytes, its header describes {end}. {_DOWNLOAD_AGAIN}')
  return tensors


class Pending(NamedTuple):
  """A tensor to write; `make` computes its data when it is written."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, tensors: Iterable[Pending]) -> None:
  """Writes a safetensors file with one tensor in memory at a time. Raises ValueError for a dtype that is not in DTYPES."""
  tensors = list(tensors)
  words = {np.dtype(dtype): word for word, dtype in DTYPES.items()}
  header: dict = {'__metadata__': {'format': 'pt'}}  # transformers refuses files without it
  at = 0
  for tensor in tensors:
    if tensor.dtype not in words:
      raise ValueError(f'{tensor.name} has dtype {tensor.dtype}; weights are written as {", ".join(DTYPES)}.')
    header[tensor.name] = {
      'dtype': words[tensor.dtype],
      'shape': tensor.shape,
      'data_offsets': [at, at + tensor.nbytes],
    }
    at += tensor.nbytes
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
  with open(path, 'wb') as f:
    f.write(struct.pack('<Q', len(text)) + text)
    for tensor in tensors:
      array = np.ascontiguousarray(tensor.make())
      if (array.dtype, array.shape) != (tensor.dtype, tensor.shape):
        raise ValueError(f'{tensor.name}: announced {tensor.shape}, made {array.shape}.')
      f.write(array.view(np.uint8).data if array.ndim else array.tobytes())
