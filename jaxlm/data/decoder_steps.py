"""Computes how much of a decoded text later tokens may still change, from the decoder steps of a tokenizer.json.

A decoder is a list of steps from pieces to text. Before a step joins the pieces, each piece is changed alone, except runs of
byte pieces. After it, a step sees the whole text, and a replacement may involve characters that later tokens add.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

_CLEANED = 7  # characters of ' do not', the longest text that the clean-up of WordPiece and CTC replaces


@dataclasses.dataclass(frozen=True)
class Settling:
  """Describes which part of a decoded text is final, whatever tokens follow."""

  byte_runs: bool = False
  """Adjacent byte pieces are decoded together, so none of them is final before another kind of piece follows."""
  tail: int | None = 0
  """Characters at the end that a replacement may change (None: all)."""
  last: bool = False
  """The last piece is decoded differently from a piece within the text."""
  least: int = 0
  """A text of at most this many characters may be replaced as a whole."""

  def stable_length(self, text: str) -> int:
    """Returns how many first characters of a text are final. The caller must check `byte_runs` and `last` before."""
    if self.tail is None or len(text) <= self.least:
      return 0
    # U+FFFD at the end may be a character whose other bytes follow.
    return max(len(text) - self.tail - text.endswith('\ufffd'), 0)


def settling(decoder: Mapping[str, Any] | None) -> Settling:
  """Returns the Settling of the decoder of a tokenizer.json."""
  joined = bytes_joined = byte_runs = last = False
  tail: int | None = 0
  least = 0
  for step in _steps(decoder):
    kind = step.get('type')
    if kind == 'ByteLevel':
      # One later character that is not in the byte alphabet changes how all text before it is decoded.
      tail = None if joined else tail
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
  """Returns whether the decoder step ByteFallback treats a piece as a byte."""
  return len(piece) == 6 and piece.startswith('<0x') and piece.endswith('>')


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
  if decoder and decoder.get('type') == 'Sequence':
    for step in decoder.get('decoders', ()):
      yield from _steps(step)
  elif decoder:
    yield decoder


def _after(step: Mapping[str, Any], tail: int) -> int | None:
  """Returns how many last characters may change after a replacement step, given that `tail` may change before it."""
  pattern, content = step.get('suffix'), ''
  if step.get('type') == 'Replace':
    rule = step.get('pattern')
    pattern, content = rule.get('String') if isinstance(rule, Mapping) else None, step.get('content')
  if step.get('type') in ('WordPiece', 'CTC'):
    return tail + _CLEANED - 1
  if not isinstance(pattern, str) or not isinstance(content, str) or not pattern:
    return None  # A regular expression may match anything.
  return (tail + len(pattern) - 1) * max(1, len(content))
