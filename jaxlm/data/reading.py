"""Reads lines and pieces of text files, compressed or not. Every error is a DataError that names the file and the line."""

import bz2
from collections.abc import Iterator
import gzip
import io
import lzma
from pathlib import Path
from typing import BinaryIO
import zlib

from jaxlm import errors

PIECE = 1 << 16
"""Largest number of bytes of a line that `numbered_pieces` reads at once."""


def _zstandard(path: Path, mode: str) -> BinaryIO:
  try:
    import pyarrow as pa
  except ModuleNotFoundError as e:
    raise errors.DataError(f'Reading {path} needs pyarrow: pip install pyarrow; or unpack it: unzstd {path}') from e
  return io.BufferedReader(pa.input_stream(str(path), compression='zstd'))


OPENERS = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open, '.zst': _zstandard}
PACKED = tuple(OPENERS)
"""Suffixes of compressed files."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, line). All line ends become '\\n'."""
  return _decoded(path, -1)


def numbered_pieces(path: Path) -> Iterator[tuple[int, str]]:
  """Yields (line number, piece). A piece is a line, or part of a long line; only the last piece of a line ends in a newline."""
  return _decoded(path, PIECE)


def _decoded(path: Path, most: int) -> Iterator[tuple[int, str]]:
  number, column, rest = 1, 0, b''
  try:
    with OPENERS.get(path.suffix.lower(), open)(path, 'rb') as file:
      _check_encoding(path, file.peek(4096)[:4096])
      # The file is opened in binary mode, so that the line number of a decoding error is known.
      while piece := file.readline(most):
        data, ends = rest + piece, most < 0 or piece.endswith(b'\n')
        rest = b'' if ends else _cut_character(data)
        data = data[: len(data) - len(rest)]
        if not ends and data.endswith(b'\r'):  # '\n' may follow.
          rest, data = data[-1:] + rest, data[:-1]
        text = data.decode('utf-8-sig' if number == 1 and not column else 'utf-8')
        if text:
          yield number, (text[:-2] + '\n' if text.endswith('\r\n') else text)
        column += len(data)
        if ends:
          number, column = number + 1, 0
      if rest:
        yield number, rest.decode()
  except UnicodeDecodeError as e:
    raise errors.DataError(
      f'{path}, line {number}: byte {e.object[e.start]:#04x} at column {column + e.start + 1} is not UTF-8. '
      f'Convert the file, for instance: {_conversion(path, "latin1")}'
    ) from e
  except errors.DataError:
    raise
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:  # EOFError: a truncated compressed file
    raise errors.DataError(f'{path} cannot be read (after line {number - 1}): {e}') from e


def _conversion(path: Path, encoding: str) -> str:
  packed = path.suffix.lower() in PACKED
  plain = Path(path.stem if packed else path.name)
  command = f'iconv -f {encoding} -t utf-8 {plain} > new{plain.suffix}'
  return f'unpack it, and {command}' if packed else command


def _cut_character(data: bytes) -> bytes:
  """Returns the last bytes of `data` if they are the beginning of an incomplete UTF-8 character, else b''."""
  for n in range(1, min(4, len(data) + 1)):
    byte = data[-n]
    if byte >= 0xC0:  # The first byte of a character of 2, 3 or 4 bytes.
      return data[-n:] if n < 2 + (byte >= 0xE0) + (byte >= 0xF0) else b''
    if byte < 0x80:
      break
  return b''


def _check_encoding(path: Path, start: bytes) -> None:
  """Raises DataError that names the encoding for UTF-16 and UTF-32 files; read as UTF-8, they would be full of null characters."""
  found = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
  if found is None and start.count(0) > len(start) / 4:
    found = 'utf-16le' if start[1::2].count(0) >= start[0::2].count(0) else 'utf-16be'
  if found is not None:
    raise errors.DataError(
      f'{path} looks like {found.upper()}, and UTF-8 is read. Convert it: {_conversion(path, found)}'
    )


MARKS = {b'\xff\xfe\0\0': 'utf-32', b'\0\0\xfe\xff': 'utf-32', b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}
"""Byte order marks -> encoding. Longer marks come first, because one mark is the beginning of another."""
