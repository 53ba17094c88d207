"""Added tokens: strings that are encoded as a single id. Several files of a model may declare them.

  tokenizer.json            the list "added_tokens"
  tokenizer_config.json     "added_tokens_decoder" (id -> token with flags), and tokens by role: "eos_token", ...
  special_tokens_map.json   tokens by role; ignored if there is an added_tokens_decoder
  added_tokens.json         token -> id; a token is special if it has a role

The files are merged in the same way as in transformers. Added tokens are matched in a text before the model encodes the rest.
Flags of a token say whether it includes adjacent spaces (lstrip, rstrip), whether it must be a whole word (single_word), and
whether it is special. A special token is parsed only if the caller asks for it, so that the text of a user cannot contain one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxlm import errors

ROLES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
_FLAGS = {'special': False, 'lstrip': False, 'rstrip': False, 'single_word': False, 'normalized': True}


def text_of(value: Any) -> str | None:
  """Returns the text of a token, which a file gives as a string or an object. Raises ValueError for other types."""
  text = value.get('content') if isinstance(value, Mapping) else value
  if text is not None and not isinstance(text, str):
    raise ValueError(f'a token is {errors.shown(value)}; expected a string, or an object with "content"')
  return text


def _token(value: Any, **flags: bool) -> Any:
  """Returns the AddedToken of an entry. Raises ValueError for an entry of another kind."""
  from tokenizers import AddedToken

  text = text_of(value)
  if text is None:
    raise ValueError(f'a token is {errors.shown(value)}; expected a string, or an object with "content"')
  if isinstance(value, Mapping):
    flags = {name: value.get(name, flags.get(name, default)) for name, default in _FLAGS.items()}
  if wrong := [name for name, flag in flags.items() if not isinstance(flag, bool)]:
    raise ValueError(f'the token {text!r} has {wrong[0]}={flags[wrong[0]]!r}; expected true or false')
  return AddedToken(text, **flags)


def marker(text: str) -> Any:
  """Returns the AddedToken of a special token for which only the text is known."""
  return _token(text, special=True, normalized=False)


def fields_of(token: Any) -> dict[str, Any]:
  """Returns the fields of an AddedToken in the format of tokenizer_config.json."""
  return {'content': token.content} | {name: getattr(token, name) for name in _FLAGS}


def by_role(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the special tokens in `settings`: role -> AddedToken; tokens without a role are stored under their text."""
  flags = dict(special=True, normalized=False)
  found = {}
  for role in ROLES:
    if (value := settings.get(f'{role}_token')) is not None and text_of(value):
      found[role] = _token(value, **flags)
  for name in ('additional_special_tokens', 'extra_special_tokens'):
    values = settings.get(name) or []
    if not isinstance(values, list | dict):
      raise ValueError(f'{name} is {errors.shown(values)}; expected a list of tokens')
    for value in values.values() if isinstance(values, dict) else values:
      token = _token(value, **flags)
      found.setdefault(token.content, token)
  for token in found.values():
    token.special = True
  return found


def declared(settings: Mapping[str, Any]) -> dict[int, Any]:
  """Returns the tokens that settings declare with an id: id -> AddedToken, sorted by id."""
  decoder, plain = settings.get('added_tokens_decoder'), settings.get('added_tokens')
  entries: Iterator[tuple[Any, Any]]
  if decoder is not None:
    if not isinstance(decoder, Mapping):
      raise ValueError(f'added_tokens_decoder is {errors.shown(decoder)}; expected an object from ids to tokens')
    entries = ((id, _token(value)) for id, value in decoder.items())
  elif plain is not None:
    if not isinstance(plain, Mapping):
      raise ValueError(f'added_tokens.json holds {errors.shown(plain)}; expected an object from tokens to ids')
    special = {token.content for token in by_role(settings).values()}
    entries = (
      (id, _token(text, special=text in special, normalized=text not in special)) for text, id in plain.items()
    )
  else:
    return {}
  tokens: dict[int, Any] = {}
  for id, token in entries:
    if isinstance(id, bool) or not str(id).isascii() or not str(id).isdigit():
      raise ValueError(
        f'the added token {token.content!r} has the id {errors.shown(id)}; expected a whole number from 0'
      )
    tokens[int(id)] = token
  return dict(sorted(tokens.items()))


def install(tokenizer: Any, settings: Mapping[str, Any]) -> bool:
  """Adds the tokens that `settings` declare to a tokenizers.Tokenizer, and returns whether anything changed.

  Raises ValueError if a token's id is neither its id in the vocabulary nor the next free id.
  """
  before = {id: token.special for id, token in tokenizer.get_added_tokens_decoder().items()}
  special, free = [], max(tokenizer.get_vocab().values(), default=-1) + 1
  for id, token in declared(settings).items():
    known = tokenizer.token_to_id(token.content)
    if id != (free if known is None else known):
      where = f'the vocabulary has it as {known}' if known is not None else f'the next free id is {free}'
      raise ValueError(f'the added token {token.content!r} has the id {id}, but {where}')
    tokenizer.add_tokens([token])
    free += known is None
    special += [token] if token.special else []
  roles = by_role(settings).values()
  # A token that is special in any file is special, so that a user's text cannot contain it.
  tokenizer.add_special_tokens([*special, *(t for t in roles if tokenizer.token_to_id(t.content) is not None)])
  return before != {id: token.special for id, token in tokenizer.get_added_tokens_decoder().items()}


class Splitter:
  """Splits a text at added tokens, for a tokenizer library that does not support them.

  The `tokenizers` package does the matching, with a model that leaves the text between added tokens whole.
  """

  _REST = '\ufffc'

  def __init__(self, tokens: Mapping[int, Any]):
    """`tokens`: id -> AddedToken."""
    import tokenizers

    ids = {}  # the library keeps the first of two tokens with the same text
    for id, token in tokens.items():
      ids.setdefault(token.content, id)
    self._ids = list(ids.values())
    self._plain, self._parsing = (
      tokenizers.Tokenizer(tokenizers.models.WordLevel({self._REST: 0}, unk_token=self._REST)) for _ in range(2)
    )
    for each in (self._plain, self._parsing):
      each.add_tokens(list(tokens.values()))
    self._plain.encode_special_tokens = True  # special strings are plain text

  def split(self, text: str, *, special: bool) -> Iterator[tuple[int | None, str, bool]]:
    """Yields (id or None for plain text, the part's text, whether the part is at the start of the text)."""
    cut = (self._parsing if special else self._plain).encode(text, add_special_tokens=False)
    for number, (start, stop) in zip(cut.ids, cut.offsets, strict=True):
      yield self._ids[number - 1] if number else None, text[start:stop], start == 0
