"""What lies beside a tokenizer: which id is BOS, EOS or padding, its chat template, and how its pieces spell bytes."""

from collections.abc import Iterable, Mapping
import functools
import json
from pathlib import Path
import re
from typing import Any

# ---- id -> bytes of a tokenizer.json ----


@functools.cache
def _byte_alphabet() -> dict[str, int]:
  """GPT-2's printable stand-ins for the 256 bytes."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in set(printable)]
  return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def byte_level(piece: str) -> bytes:
  """Returns the bytes that a piece spells in GPT-2's alphabet."""
  alphabet = _byte_alphabet()
  if all(c in alphabet for c in piece):
    return bytes(alphabet[c] for c in piece)
  return piece.encode()  # an added token that holds a plain space, say


def metaspace(piece: str) -> bytes:
  """Returns the bytes of a SentencePiece-like piece: U+2581 is a space, <0x0A> is one byte."""
  if re.fullmatch('<0x[0-9A-Fa-f]{2}>', piece):
    return bytes([int(piece[3:5], 16)])
  return piece.replace('\u2581', ' ').encode()


def decoder_kind(decoder: Mapping[str, Any] | None) -> tuple[str, bool]:
  """Returns ('byte_level' | 'metaspace' | 'other', whether a first space is taken away)."""
  steps = (decoder or {}).get('decoders', [decoder] if decoder else [])
  types = [step['type'] for step in steps]
  if types == ['ByteLevel']:
    return 'byte_level', False
  if types in (['Replace', 'ByteFallback', 'Fuse'], ['Replace', 'ByteFallback', 'Fuse', 'Strip']):
    if steps[0].get('pattern') == {'String': '\u2581'} and steps[0].get('content') == ' ':
      return 'metaspace', 'Strip' in types
  return 'other', False


# ---- special tokens and settings ----


def text_of(value: Any) -> str | None:
  """Returns the text of a special token, which files give as a string or as an object."""
  return value.get('content') if isinstance(value, Mapping) else value


def set_specials(tokenizer: Any, ids: Mapping[str, int], settings: Mapping[str, Any]) -> None:
  """Sets bos_id, eos_id, pad_id, stop_ids, adds_bos and chat_template from what the model's files say."""
  stops = []
  for name in ('bos', 'eos', 'pad'):
    id = ids.get(name)
    numbers = settings.get(f'{name}_token_id')
    numbers = [] if numbers is None else list(numbers) if isinstance(numbers, Iterable) else [numbers]
    if (text := text_of(settings.get(f'{name}_token'))) is not None:
      found = tokenizer._special.get(text)
      if found is None and text.encode() in tokenizer._bytes:
        found = tokenizer._bytes.index(text.encode())
      id = id if found is None else found
    if id is None and numbers:
      id = int(numbers[0])
    if id is not None and not 0 <= id < tokenizer.vocab_size:
      raise ValueError(f'{name}_token_id={id} lies outside the vocabulary of {tokenizer.vocab_size} tokens.')
    setattr(tokenizer, f'{name}_id', id)
    if name == 'eos':
      stops = [*([] if id is None else [id]), *map(int, numbers)]
  tokenizer.stop_ids = tuple(dict.fromkeys([*stops, *map(int, settings.get('stop_token_ids', ()))]))
  tokenizer.adds_bos = bool(settings.get('add_bos_token') or False) and tokenizer.bos_id is not None
  template = settings.get('chat_template')
  if isinstance(template, list):  # several named templates
    named = {t['name']: t['template'] for t in template}
    template = named.get('default', next(iter(named.values()), None))
  tokenizer.chat_template = template


def settings_of(tokenizer: Any) -> dict[str, Any]:
  settings: dict[str, Any] = {'add_bos_token': tokenizer.adds_bos, 'stop_token_ids': list(tokenizer.stop_ids)}
  for name in ('bos', 'eos', 'pad'):
    if (id := getattr(tokenizer, f'{name}_id')) is not None:
      settings[f'{name}_token'] = tokenizer.token_text(id)
  if tokenizer.chat_template is not None:
    settings['chat_template'] = tokenizer.chat_template
  return settings


def write_json(path: Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def read_settings(directory: Path) -> dict[str, Any]:
  # Later files win. The numeric ids of the model's own configs only fill what no token string says, and add stops.
  settings: dict[str, Any] = {}
  for name in ('config.json', 'generation_config.json', 'special_tokens_map.json', 'tokenizer_config.json'):
    if not (path := directory / name).is_file():
      continue
    try:
      fields = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as e:
      raise ValueError(f'{path} is not readable JSON: {e}') from e
    numeric = name in ('config.json', 'generation_config.json')
    settings |= {k: v for k, v in fields.items() if v is not None and (not numeric or k.endswith('_token_id'))}
  if (path := directory / 'chat_template.jinja').is_file():
    settings['chat_template'] = path.read_text(encoding='utf-8')
  return settings
