"""Converts the pieces of a tokenizer.json to bytes, and checks and normalises parts of that file."""

from collections.abc import Mapping
import functools
import json
import re
from typing import Any

_MOST_GROWTH = 1000
_MOST_IDS = 10_000_000  # About a hundred times the largest vocabulary. A larger id means a damaged file, and a table of that size would fill memory.

# ---- id -> bytes of a tokenizer.json ----


@functools.cache
def _byte_alphabet() -> dict[str, int]:
  """Returns GPT-2's printable character for each of the 256 bytes: character -> byte."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in set(printable)]
  return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def byte_level(piece: str) -> bytes:
  """Returns the bytes of a piece that is written in GPT-2's byte alphabet."""
  alphabet = _byte_alphabet()
  if all(c in alphabet for c in piece):
    return bytes(alphabet[c] for c in piece)
  return piece.encode()  # For example an added token that contains a plain space.


def metaspace(piece: str) -> bytes:
  """Returns the bytes of a SentencePiece-like piece: U+2581 is a space, <0x0A> is one byte."""
  if re.fullmatch('<0x[0-9A-Fa-f]{2}>', piece):
    return bytes([int(piece[3:5], 16)])
  return piece.replace('\u2581', ' ').encode()


def decoder_kind(decoder: Mapping[str, Any] | None) -> tuple[str, bool]:
  """Returns ('byte_level' | 'metaspace' | 'other', whether decoding removes a space at the start)."""
  steps = (decoder or {}).get('decoders', [decoder] if decoder else [])
  types = [step.get('type') for step in steps]
  if types == ['ByteLevel']:
    return 'byte_level', False
  if types in (['Replace', 'ByteFallback', 'Fuse'], ['Replace', 'ByteFallback', 'Fuse', 'Strip']):
    if steps[0].get('pattern') == {'String': '\u2581'} and steps[0].get('content') == ' ':
      return 'metaspace', 'Strip' in types
  return 'other', False


def without_padding(json_text: str) -> tuple[str, dict[str, Any]]:
  """Returns a tokenizer.json without padding and truncation, as text and parsed. Raises ValueError if it is not valid."""
  try:
    spec = json.loads(json_text)
  except RecursionError:
    raise ValueError('its JSON is nested too deep') from None
  if not isinstance(spec, dict):
    raise ValueError(f'it holds a {type(spec).__name__}, not an object')
  for name in ('normalizer', 'decoder'):
    _check_growth(name, spec.get(name))
  left = {name: None for name in ('truncation', 'padding') if spec.get(name) is not None}
  return (json.dumps(spec | left, ensure_ascii=False) if left else json_text), spec


def with_space_rule(json_text: str, spec: dict[str, Any], rule: str, prefix: bool) -> tuple[str, dict[str, Any]]:
  """Returns a SentencePiece-like tokenizer.json with the space rule of transformers' LlamaTokenizer, as text and parsed.

  transformers builds this class from the vocabulary and merges alone. The settings `legacy` and `add_prefix_space` decide
  where spaces are added; the normalizer in the file is ignored.
  """
  model = spec.get('model')
  if decoder_kind(spec.get('decoder'))[0] != 'metaspace' or not isinstance(model, dict) or model.get('type') != 'BPE':
    return json_text, spec
  space = {'replacement': '\u2581', 'prepend_scheme': rule if prefix else 'never', 'split': False}
  steps = [{'type': 'Replace', 'pattern': {'String': '\u2581'}, 'content': ' '}, {'type': 'ByteFallback'}]
  steps += [{'type': 'Fuse'}, *([{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if prefix else [])]
  spec = spec | {
    'normalizer': None,
    'pre_tokenizer': {'type': 'Metaspace', **space},
    'decoder': {'type': 'Sequence', 'decoders': steps},
  }
  return json.dumps(spec, ensure_ascii=False), spec


def _check_growth(name: str, part: Any) -> None:
  """Raises ValueError for replacements that make a text thousands of times longer, since the library would run out of memory."""
  growth, steps = 1.0, [part]
  while steps:
    step = steps.pop()
    if isinstance(step, list):
      steps += step
    elif isinstance(step, dict):
      steps += [step.get('normalizers'), step.get('decoders')]
      pattern, content = step.get('pattern'), step.get('content')
      if isinstance(content, str):
        text = pattern.get('String') if isinstance(pattern, dict) else None
        growth *= max(1.0, len(content) / max(1, len(text) if isinstance(text, str) else 1))
  if growth > _MOST_GROWTH:
    raise ValueError(f'its {name} makes a text up to {growth:.0f} times as long; at most {_MOST_GROWTH} is read')


def check_ids(vocabulary: Mapping[str, int]) -> None:
  """Raises ValueError for an id that is too large for any vocabulary, before a table of that size is allocated."""
  piece, id = max(vocabulary.items(), key=lambda item: item[1], default=('', 0))
  if id >= _MOST_IDS:
    raise ValueError(f'the token {piece!r} has the id {id}; ids are expected to be below {_MOST_IDS}')
