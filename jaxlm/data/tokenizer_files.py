"""Settings in the files beside a tokenizer: ids of BOS, EOS and padding, the chat template, and rules of tokenizer classes."""

from collections.abc import Iterator, Mapping
import contextlib
import json
from pathlib import Path
from typing import Any
import warnings

from jaxlm import errors
from jaxlm.data.added_tokens import ROLES, text_of

_NUMBERS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
_MODEL_FIELDS = (*_NUMBERS, 'model_type', 'tokenizer_class')


class SettingsError(ValueError):
  """An invalid value in a file beside a tokenizer; the message names the file."""


class Settings(dict):
  """The fields of all files beside a tokenizer, and which file each is from."""

  def __init__(self):
    super().__init__()
    self.sources: dict[str, Path] = {}


def refuse(settings: Mapping[str, Any], name: str, expected: str) -> SettingsError:
  """Returns the error for a field with an invalid value."""
  source = getattr(settings, 'sources', {}).get(name, "the tokenizer's settings")
  return SettingsError(f'{source}: {name}={errors.shown(settings.get(name), 200)} cannot be used: expected {expected}.')


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
  """Turns errors inside the block into ValueErrors that name the file, unless they name one already."""
  try:
    yield
  except SettingsError:
    raise
  except MemoryError as e:
    raise ValueError(f'{path} cannot be used {what}: it asks for more memory than there is.') from e
  except Exception as e:  # the tokenizers package raises bare Exception
    raise ValueError(f'{path} cannot be used {what}: {e}') from e


def _ids(settings: Mapping[str, Any], name: str) -> list[int]:
  """Returns the ids of a field that holds one id, a list or null. Raises SettingsError for other types."""
  value = settings.get(name)
  values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
  if any(isinstance(id, bool) or not isinstance(id, int) for id in values):
    raise refuse(settings, name, 'a token id, a list of them, or null')
  return values


def set_specials(
  tokenizer: Any, ids: Mapping[str, int], settings: Mapping[str, Any], *, adds_bos: bool = False
) -> None:
  """Sets bos_id, eos_id, pad_id, stop_ids, adds_bos and chat_template of a tokenizer from the model's files.

  The text of a token in the settings has priority, then the vocabulary (`ids`), then the ids in the model's configs. A token
  that does not exist is ignored with a warning; for EOS it is an error, because generation would never end.

  Args:
    adds_bos: value to use if the settings do not have the field.
  """
  size, stops = tokenizer.vocab_size, []
  for name in ('bos', 'eos', 'pad'):
    id, field = ids.get(name), f'{name}_token_id'
    numbers = _ids(settings, field)
    if outside := [number for number in numbers if not 0 <= number < size]:
      error = refuse(settings, field, f'ids of tokens, which are 0 to {size - 1}; {outside[0]} is none')
      if name == 'eos':
        raise error
      warnings.warn(f'{error} It is left out.', stacklevel=2)
      numbers = [number for number in numbers if number not in outside]
    if text := _text(settings, f'{name}_token'):
      id = tokenizer.token_id(text)
      if id is None:
        error = refuse(settings, f'{name}_token', 'a token of the vocabulary or of the added tokens, and it is neither')
        if name == 'eos':
          raise error
        warnings.warn(f'{error} It is left out.', stacklevel=2)
    if id is None and numbers:
      id = numbers[0]
    setattr(tokenizer, f'{name}_id', id)
    if name == 'eos':
      stops = [*([] if id is None else [id]), *numbers]
  stops += _ids(settings, 'stop_token_ids')
  if any(not 0 <= id < size for id in stops):
    raise refuse(settings, 'stop_token_ids', f'ids of tokens, which are 0 to {size - 1}')
  tokenizer.stop_ids = tuple(dict.fromkeys(stops))
  adds_bos = adds_bos if (value := settings.get('add_bos_token')) is None else value
  if not isinstance(adds_bos, bool):
    raise refuse(settings, 'add_bos_token', 'true or false')
  tokenizer.adds_bos = adds_bos and tokenizer.bos_id is not None
  tokenizer.chat_template = _chat_template(settings)
  others = {f'{role}_token': _text(settings, f'{role}_token') for role in ROLES if role not in ('bos', 'eos', 'pad')}
  tokenizer._other_roles = {
    name: text for name, text in others.items() if text and tokenizer.token_id(text) is not None
  }


def _text(settings: Mapping[str, Any], name: str) -> str | None:
  try:
    return text_of(settings.get(name))
  except ValueError as e:
    raise refuse(settings, name, 'a string, or an object with "content"') from e


def _chat_template(settings: Mapping[str, Any]) -> str | None:
  template = settings.get('chat_template')
  if isinstance(template, list):  # several named templates
    try:
      named = {t['name']: t['template'] for t in template}
    except (TypeError, KeyError) as e:
      raise refuse(settings, 'chat_template', 'a template, or a list of objects with "name" and "template"') from e
    template = named.get('default', next(iter(named.values()), None))
  if template is not None and not isinstance(template, str):
    raise refuse(settings, 'chat_template', 'a template, or a list of objects with "name" and "template"')
  return template


def settings_of(tokenizer: Any) -> dict[str, Any]:
  settings: dict[str, Any] = {'add_bos_token': tokenizer.adds_bos, 'stop_token_ids': list(tokenizer.stop_ids)}
  settings |= tokenizer._other_roles
  for name in ('bos', 'eos', 'pad'):
    if (id := getattr(tokenizer, f'{name}_id')) is not None:
      # A token that is not special is written as an id: written as text, it would be special when loaded.
      special = id in tokenizer.special_ids
      settings[f'{name}_token' if special else f'{name}_token_id'] = tokenizer.token_text(id) if special else id
  if tokenizer.chat_template is not None:
    settings['chat_template'] = tokenizer.chat_template
  return settings


def write_json(path: Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def read_settings(directory: Path) -> Settings:
  """Returns the fields of all files beside a tokenizer, merged in the same way as in transformers.

  special_tokens_map.json has priority over tokenizer_config.json, unless the latter has an added_tokens_decoder. The numeric
  ids in the model's configs are used only for roles without a token text, and as further stop ids.

  Raises SettingsError that names the file if one cannot be read.
  """
  config, generation, marks, own, added = (
    _read(directory / name)
    for name in (
      *('config.json', 'generation_config.json', 'special_tokens_map.json', 'tokenizer_config.json'),
      'added_tokens.json',
    )
  )
  files = {
    directory / 'config.json': {k: v for k, v in (config or {}).items() if k in _MODEL_FIELDS},
    directory / 'generation_config.json': {k: v for k, v in (generation or {}).items() if k in _NUMBERS},
    directory / 'tokenizer_config.json': own or {},
    directory / 'special_tokens_map.json': marks or {},
    directory / 'added_tokens.json': {} if added is None else {'added_tokens': added},
  }
  if (own or {}).get('added_tokens_decoder') is not None:
    complete = directory / 'tokenizer_config.json'
    files[complete] = files.pop(complete)  # later files have priority
  settings = Settings()
  for file, fields in files.items():
    fields = {name: value for name, value in fields.items() if value is not None}
    settings.update(fields)
    settings.sources |= dict.fromkeys(fields, file)
  if (path := directory / 'chat_template.jinja').is_file():
    settings['chat_template'] = path.read_text(encoding='utf-8')
  return settings


def _read(path: Path) -> dict[str, Any] | None:
  """Returns the object in a JSON file, or None if there is no file. Raises SettingsError that names it."""
  if not path.is_file():
    return None
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as e:
    raise SettingsError(f'{path} is not readable JSON: {e}. Download or copy it again.') from e
  if not isinstance(value, dict):
    raise SettingsError(f'{path} holds a {type(value).__name__}, not an object. Download or copy it again.')
  return value


# ---- rules of transformers' tokenizer classes that are not written in their files ----


def _class_of(settings: Mapping[str, Any]) -> tuple[str | None, str | None]:
  """Returns (class, model_type) as the files name them; both are None for files that jaxlm wrote."""
  if 'stop_token_ids' in settings or 'space_rule' in settings:
    return None, None
  name, model_type = settings.get('tokenizer_class'), settings.get('model_type')
  return (name.removesuffix('Fast') if isinstance(name, str) else None), model_type


def space_rule(settings: Mapping[str, Any]) -> tuple[str, bool | None]:
  """Returns (space_rule of SentencePieceTokenizer, whether a space is added before texts; None: the model's setting)."""
  rules, prefix = ('sentencepiece', 'always', 'first'), settings.get('add_prefix_space')
  for name in ('legacy', 'add_prefix_space'):
    if not isinstance(settings.get(name), bool | None):
      raise refuse(settings, name, 'true, false or null')
  if (rule := settings.get('space_rule')) is not None:
    if rule not in rules:
      raise refuse(settings, 'space_rule', f'one of {", ".join(rules)}')
    return rule, prefix
  name, model_type = _class_of(settings)
  if name is None and model_type is None:
    return 'sentencepiece', None
  legacy = settings.get('legacy')
  if model_type == 'mistral' or name != 'LlamaTokenizer':
    # transformers has no special class for these models and follows the .model file; an absent `legacy` counts as true.
    return ('first' if legacy is False else 'sentencepiece'), None
  return ('always' if legacy else 'first'), (True if prefix is None else prefix)


def names_unk(settings: Mapping[str, Any]) -> bool:
  """Returns whether the unknown piece of a SentencePiece model is a special token, as it is in transformers."""
  return settings.get('unk_token') is not None or _class_of(settings) != (None, None)


def merges_rule(settings: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
  """Returns (splitting rule, default tokens by role) for a tokenizer of vocab.json and merges.txt."""
  name, model_type = _class_of(settings)
  end = '<|endoftext|>'
  if name == 'Qwen2Tokenizer' or (name is None and model_type in ('qwen2', 'qwen3')):
    return 'qwen2', {'eos_token': end, 'pad_token': end}
  return 'gpt-2', {'bos_token': end, 'eos_token': end}
