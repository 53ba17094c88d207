"""Base class of all tokenizers: decoding through a table from ids to bytes, special tokens in text, and chat."""

import abc
from collections.abc import Iterable, Mapping, Sequence
import functools
import re
from typing import Any

from jaxlm.data import chat as chat_lib


class ByteTable(abc.ABC):
  """A tokenizer in which each id stands for a string of bytes. Subclasses fill the table and encode plain text."""

  bos_id: int | None = None
  eos_id: int | None = None
  pad_id: int | None = None
  stop_ids: tuple[int, ...] = ()
  """Ids that end a generated text: eos_id and, for chat models, the end of a turn."""
  adds_bos: bool = False
  """Whether the model expects bos_id before a text."""
  chat_template: str | None = None
  strips_first_space: bool = False
  """Whether decoding removes a space at the start of a text, because the encoder adds one (SentencePiece)."""
  _other_roles: Mapping[str, str] = {}
  """Special tokens besides BOS, EOS and padding, by name: {'unk_token': '<unk>'}."""
  _bytes: list[bytes]
  _special: dict[str, int]
  """Strings that `special=True` reads as one id."""

  @property
  def vocab_size(self) -> int:
    return len(self._bytes)

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """Ids that `skip_special` leaves out of the text."""
    return frozenset(self._special.values())

  def token_id(self, text: str) -> int | None:
    """Returns the id of the token with this text (special tokens first), or None if there is none."""
    found = self._special.get(text)
    data = text.encode('utf-8', errors='replace')
    return self._bytes.index(data) if found is None and data in self._bytes else found

  def token_bytes(self, id: int, *, skip_special: bool = True) -> bytes:
    """Returns the UTF-8 bytes (perhaps part of a character) that an id stands for."""
    if not 0 <= id < len(self._bytes) or (skip_special and id in self.special_ids):
      return b''
    return self._bytes[id]

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    data = b''.join(self.token_bytes(int(i), skip_special=skip_special) for i in ids)
    if self.strips_first_space and data.startswith(b' '):
      data = data[1:]
    return data.decode('utf-8', errors='replace')

  @abc.abstractmethod
  def _encode_plain(self, text: str) -> list[int]:
    """Returns the ids of a text without special tokens."""

  def _encode_special(self, text: str) -> list[int]:
    ids, start = [], 0
    if self._special:
      longest_first = sorted(self._special, key=len, reverse=True)
      for match in re.finditer('|'.join(map(re.escape, longest_first)), text):
        ids += [*self._encode_plain(text[start : match.start()]), self._special[match[0]]]
        start = match.end()
    return ids + self._encode_plain(text[start:])

  def encode(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
    ids = self._encode_special(text) if special else self._encode_plain(text)
    return [*self._ends('bos', bos), *ids, *self._ends('eos', eos)]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns `encode` of each text; subclasses may compute them in parallel."""
    return [self._encode_plain(text) for text in texts]

  def _ends(self, name: str, wanted: bool) -> list[int]:
    if not wanted:
      return []
    if (id := getattr(self, f'{name}_id')) is None:
      raise ValueError(f'{name}=True, but this tokenizer has no {name} token.')
    return [id]

  def chat(self, messages: list[dict] | str, *, add_generation_prompt: bool = True, **variables: Any) -> list[int]:
    # As in transformers, special tokens are parsed in the whole rendered text, even if a message contains them.
    names = {f'{n}_token': self.token_text(getattr(self, f'{n}_id')) for n in ('bos', 'eos')}
    given = {**names, **self.role_texts, **variables}
    text = chat_lib.render(self.chat_template, messages, add_generation_prompt=add_generation_prompt, **given)
    return self.encode(text, special=True)

  @property
  def role_texts(self) -> dict[str, str]:
    """Special tokens by the names that chat templates use: {'bos_token': '<s>', ...}."""
    ids = {name: getattr(self, f'{name}_id') for name in ('bos', 'eos', 'pad')}
    return self._other_roles | {f'{name}_token': self.token_text(id) for name, id in ids.items() if id is not None}

  def token_text(self, id: int | None) -> str:
    """Returns the string of a token, special or not ('' for None)."""
    return '' if id is None else self.token_bytes(id, skip_special=False).decode('utf-8', errors='replace')
