"""How much of a text further tokens may still change, by the steps of a tokenizer.json's decoder.

A decoder is a list of steps from pieces to text. Until a step joins them, pieces are changed one by one, apart from runs of byte
pieces; afterwards a step sees the whole text, and a replacement may reach across the end of what is there.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

_CLEANED = 7  # characters of ' do not', the longest text that the clean-up of WordPiece and CTC replaces


@dataclasses.dataclass(frozen=True)
class Settling:
  """What of a text is settled, whatever tokens follow."""

  byte_runs: bool = False
  """Byte pieces side by side become characters together: none of them is settled before another piece follows."""
  tail: int | None = 0
  """Characters at the end that a replacement may change (None: all)."""
  last: bool = False
  """The last piece is written in another way than a piece within the text."""
  least: int = 0
  """A text of at most so many characters may be replaced as a whole."""

  def settled(self, text: str) -> int:
    """Returns how many characters at the beginning of a text stay, if neither byte pieces end it nor its last piece is open."""
    if self.tail is None or len(text) <= self.least:
      return 0
    # The last character may be one whose other bytes are missing.
    return max(len(text) - self.tail - text.endswith('\ufffd'), 0)


def settling(decoder: Mapping[str, Any] | None) -> Settling:
  """Returns what the decoder of a tokenizer.json leaves open."""
  joined = bytes_joined = byte_runs = last = False
  tail: int | None = 0
  least = 0
  for step in _steps(decoder):
    kind = step.get('type')
    if kind == 'ByteLevel':
      tail = (
        None if joined else tail
      )  # A single character that is no byte would make a text out of all bytes before it.
      joined = bytes_joined = True
    elif kind == 'Fuse':
      joined = True
    elif kind == 'ByteFallback':
      byte_runs, least = True, max(least, 6 * joined)
    elif kind == 'BPEDecoder' and not joined:
      last = True
    elif joined and tail is not None and kind in ('Replace', 'BPEDecoder', 'WordPiece', 'CTC'):
      tail = _after(step, max(tail, int(bytes_joined)))
    elif kind not in ('Replace', 'BPEDecoder', 'WordPiece', 'CTC', 'Metaspace', 'Strip'):
      tail = None
  return Settling(byte_runs, tail, last, least)


def is_byte_piece(piece: str) -> bool:
  """Returns whether the step ByteFallback takes a piece for a byte."""
  return len(piece) == 6 and piece.startswith('<0x') and piece.endswith('>')


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
  if decoder and decoder.get('type') == 'Sequence':
    for step in decoder.get('decoders', ()):
      yield from _steps(step)
  elif decoder:
    yield decoder


def _after(step: Mapping[str, Any], tail: int) -> int | None:
  """Returns how many characters are open behind a replacement in the joined text, of which `tail` were before it."""
  pattern, content = step.get('suffix'), ''
  if step.get('type') == 'Replace':
    rule = step.get('pattern')
    pattern, content = rule.get('String') if isinstance(rule, Mapping) else None, step.get('content')
  if step.get('type') in ('WordPiece', 'CTC'):
    return tail + _CLEANED - 1
  if not isinstance(pattern, str) or not isinstance(content, str) or not pattern:
    return None  # A regular expression may match anything.
  return (tail + len(pattern) - 1) * max(1, len(content))
