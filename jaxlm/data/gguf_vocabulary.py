"""Reads the tokenizer of a GGUF file. The vocabulary is in the file's metadata; a tag names the rule that splits text."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any
import warnings

from jaxlm import errors
from jaxlm.data import byte_level_bpe
from jaxlm.data import tokenizers as tokenizers_lib

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # 'tokenizer.ggml.token_type'
_ENDS_OF_TURNS = (
  *('<|eot_id|>', '<|eom_id|>', '<|im_end|>', '<|end|>', '<end_of_turn>', '<|END_OF_TURN_TOKEN|>', '<|return|>'),
  *('<|call|>', '<EOT>', '_<EOT>', '< EOT >', '[EOT]', '<end_of_utterance>'),
)
_MARKER = re.compile(r'<\|[^|\s]+\|>|<(start|end)_of_(turn|utterance)>')
_ROLES = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding', 'unk': 'unknown'}  # ours -> the file's


@dataclasses.dataclass
class _Pieces:
  """The vocabulary of a file, with the repairs of llama.cpp: one text and type per id, without repeated texts."""

  tokens: list[str]
  types: list[int]
  ends: list[int]  # ids that end a turn of a chat


def from_gguf(fields: Mapping[str, Any]) -> tokenizers_lib.Tokenizer:
  """Returns the tokenizer of a GGUF file's metadata.

  Raises:
    ValueError: the kind of vocabulary or the splitting rule is unknown (the message lists the known ones), or a field is
      missing or has the wrong type.
  """
  kind = fields.get('tokenizer.ggml.model')
  kinds = {'gpt2': _byte_level_bpe, 'llama': _sentencepiece}
  if not isinstance(kind, str) or kind not in kinds:
    raise errors.unknown('GGUF vocabulary', kind, kinds)
  pieces = _read_pieces(fields, infer=kind == 'llama')
  settings: dict[str, Any] = {'chat_template': fields.get('tokenizer.chat_template')}
  for ours, theirs in _ROLES.items():
    settings[f'{ours}_token_id'] = _id(fields, theirs, len(pieces.tokens), warn=True)
  settings['stop_token_ids'] = pieces.ends
  # Default of llama.cpp if the file does not have the field.
  knows = kind == 'llama' or fields.get('tokenizer.ggml.pre') in byte_level_bpe.LLAMA3
  settings['add_bos_token'] = _flag(fields, 'add_bos_token', knows)
  try:
    return kinds[kind](fields, settings, pieces)
  except ValueError:
    raise
  except Exception as e:  # The tokenizer libraries raise their own types and bare Exception.
    raise ValueError(f'its vocabulary cannot be used: {e}') from e


def _list(fields: Mapping[str, Any], name: str, kind: Any, length: int | None = None) -> list[Any]:
  """Returns an array of the vocabulary. Raises ValueError if it is missing or has the wrong type or length."""
  key = f'tokenizer.ggml.{name}'
  if (value := fields.get(key)) is None:
    raise ValueError(f'{key} is missing: the file has no complete vocabulary')
  if not isinstance(value, list | tuple) or not all(isinstance(x, kind) for x in value):
    raise ValueError(f'{key} is {errors.shown(value)}; expected an array of {getattr(kind, "__name__", "number")}s')
  if length is not None and len(value) != length:
    raise ValueError(f'{key} has {len(value)} values, but there are {length} tokens')
  return list(value)


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
  value = fields.get(f'tokenizer.ggml.{name}', default)
  if value not in (True, False):
    raise ValueError(f'tokenizer.ggml.{name} is {errors.shown(value)}; expected true or false')
  return bool(value)


def _id(fields: Mapping[str, Any], name: str, size: int, warn: bool = False) -> int | None:
  """Returns the id of a role such as 'bos', or None. An id outside the vocabulary is ignored with a warning, as in llama.cpp."""
  key = f'tokenizer.ggml.{name}_token_id'
  if (id := fields.get(key)) is None:
    return None
  if isinstance(id, bool) or not isinstance(id, int):
    raise ValueError(f'{key} is {errors.shown(id)}; expected the id of a token')
  if 0 <= id < size:
    return id
  if warn:
    warnings.warn(f'{key}={id} is no id of the {size} tokens: it is left out.', stacklevel=4)
  return None


def _read_pieces(fields: Mapping[str, Any], infer: bool) -> _Pieces:
  """Returns the vocabulary. `infer`: if the file gives no token types, they are inferred from the texts (SentencePiece)."""
  tokens = _list(fields, 'tokens', str)
  if not tokens:
    raise ValueError('tokenizer.ggml.tokens is empty')
  if fields.get('tokenizer.ggml.token_type') is not None:
    types = [int(t) for t in _list(fields, 'token_type', int, len(tokens))]
  else:
    byte = lambda token: infer and re.fullmatch('<0x[0-9A-Fa-f]{2}>', token)
    types = [BYTE if byte(token) else NORMAL for token in tokens]
  types = [t if NORMAL <= t <= BYTE else UNUSED for t in types]
  first: dict[str, int] = {}
  repaired = []
  for id, token in enumerate(tokens):
    if not token or first.setdefault(token, id) != id:
      tokens[id] = f'[{"REPEATED" if token else "EMPTY"}_{id}]'
      types[id] = UNUSED if types[id] in (NORMAL, BYTE, UNKNOWN) else types[id]
      repaired.append(id)
  if repaired:
    what = f'{len(repaired)} tokens are empty or repeated, the first with id {repaired[0]}'
    warnings.warn(f'tokenizer.ggml.tokens: {what}: no text gives them.', stacklevel=4)
  roles = {_id(fields, name, len(tokens)) for name in ('bos', 'eos', 'padding', 'eot', 'eom')} - {None}
  template = fields.get('tokenizer.chat_template')
  template = template if isinstance(template, str) else ''
  ends = [_id(fields, name, len(tokens)) for name in ('eot', 'eom')]
  ends += [first[text] for text in _ENDS_OF_TURNS if text in first]
  for id, token in enumerate(tokens):
    # Converters often give special markers the type of ordinary tokens; chat text would then be encoded without the markers.
    marker = id in roles or id in ends or (token in template and _MARKER.fullmatch(token))
    if types[id] in (NORMAL, USER_DEFINED) and marker:
      types[id] = CONTROL
  return _Pieces(tokens, types, [id for id in dict.fromkeys(ends) if id is not None])


def _byte_level_bpe(fields: Mapping[str, Any], settings: dict[str, Any], pieces: _Pieces) -> tokenizers_lib.Tokenizer:
  tag = fields.get('tokenizer.ggml.pre')
  if tag is None:
    tag = 'default'
    warnings.warn(
      "tokenizer.ggml.pre is missing, which says how text is cut before merging: it is cut by GPT-2's rule, and tokens "
      'may differ from those the model was trained with.',
      stacklevel=4,
    )
  if not isinstance(tag, str) or tag not in byte_level_bpe.PRE_TOKENIZERS:
    raise errors.unknown('GGUF pre-tokenizer', tag, byte_level_bpe.PRE_TOKENIZERS)
  added = {id: type == CONTROL for id, type in enumerate(pieces.types) if type in (CONTROL, USER_DEFINED)}
  merges = [merge.split(' ') for merge in _list(fields, 'merges', str)]
  if wrong := [merge for merge in merges if len(merge) != 2]:
    raise ValueError(f'tokenizer.ggml.merges has {" ".join(wrong[0])!r}; expected two tokens and a space between')
  vocabulary = {token: id for id, token in enumerate(pieces.tokens)}
  made = byte_level_bpe.tokenizer_json(vocabulary, merges, settings, added=added, pre=tag)
  return tokenizers_lib.HuggingFaceTokenizer(made, settings)


def _sentencepiece(fields: Mapping[str, Any], settings: dict[str, Any], pieces: _Pieces) -> tokenizers_lib.Tokenizer:
  from sentencepiece import sentencepiece_model_pb2

  tokens, types = pieces.tokens, pieces.types
  scores = _list(fields, 'scores', int | float, len(tokens))
  unknown = types.index(UNKNOWN) if UNKNOWN in types else settings['unk_token_id'] or 0
  types = [UNKNOWN if i == unknown else UNUSED if type == UNKNOWN else type for i, type in enumerate(types)]
  # llama.cpp's converter writes spaces in user-defined pieces, but SentencePiece looks for pieces in escaped text.
  escaped = [token.replace(' ', '\u2581') if type == USER_DEFINED else token for token, type in zip(tokens, types)]
  known = set(tokens)
  tokens = [token if new in known else new for token, new in zip(tokens, escaped)]
  model = sentencepiece_model_pb2.ModelProto()
  for token, score, type in zip(tokens, scores, types, strict=True):
    model.pieces.add(piece=token, score=float(score), type=type)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.vocab_size = len(tokens)
  trainer.byte_fallback = BYTE in types
  trainer.unk_id = unknown
  for name in ('bos', 'eos', 'pad'):
    id = settings[f'{name}_token_id']
    setattr(trainer, f'{name}_id', -1 if id is None else id)
    if id is not None:
      setattr(trainer, f'{name}_piece', tokens[id])
  trainer.unk_piece = tokens[trainer.unk_id]
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = _flag(fields, 'add_space_prefix', True)
  normalizer.remove_extra_whitespaces = _flag(fields, 'remove_extra_whitespaces', False)
  normalizer.escape_whitespaces = True
  return tokenizers_lib.SentencePieceTokenizer(model.SerializeToString(), settings)
