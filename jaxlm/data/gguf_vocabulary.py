"""The tokenizer inside a GGUF file: its vocabulary is metadata, its splitting rule is a tag that stands for a regex."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import re
from typing import Any
import warnings

from jaxlm import errors
from jaxlm.data import tokenizers as tokenizers_lib

_GPT2 = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
_NO_REGEX = _GPT2 | {'use_regex': False}
_REGEX = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{numbers}"
  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _split(regex: str) -> list[dict[str, Any]]:
  return [{'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False}, _NO_REGEX]


# Mistral's: a word begins at a capital letter, too.
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_TEKKEN = (
  rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*'
  r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_RULES: dict[str, list[dict[str, Any]]] = {
  'gpt-2': [_GPT2],
  'smollm': [{'type': 'Digits', 'individual_digits': True}, _GPT2],
  'llama-bpe': _split(_REGEX.format(numbers='{1,3}')),
  'qwen2': _split(_REGEX.format(numbers='')),
  'tekken': _split(_TEKKEN),
}
_TAGS = {  # which tags stand for a rule, as in llama.cpp's llama-vocab.cpp
  'gpt-2': 'default phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat mpt olmo a.x-4.0 mellum',
  'smollm': 'starcoder refact command-r codeshell exaone minerva-7b',
  'llama-bpe': 'llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe',
  'qwen2': 'deepseek-r1-qwen stablelm2 megrez hunyuan kormo',
  'tekken': '',
}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
  tag: _RULES[rule] for rule, tags in _TAGS.items() for tag in (rule, *tags.split())
}
"""How text is cut before merging, by 'tokenizer.ggml.pre'."""
# Models that begin a text with BOS, and take a whole word that is in the vocabulary as it is. A file need not say so.
_LLAMA3 = ('llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'falcon-h1', 'pixtral', 'midm-2.0', 'lfm2', 'tekken')
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # 'tokenizer.ggml.token_type'
_ENDS_OF_TURNS = (
  *('<|eot_id|>', '<|eom_id|>', '<|im_end|>', '<|end|>', '<end_of_turn>', '<|END_OF_TURN_TOKEN|>', '<|return|>'),
  *('<|call|>', '<EOT>', '_<EOT>', '< EOT >', '[EOT]', '<end_of_utterance>'),
)
_MARKER = re.compile(r'<\|[^|\s]+\|>|<(start|end)_of_(turn|utterance)>')
_ROLES = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding', 'unk': 'unknown'}  # ours -> the file's


@dataclasses.dataclass
class _Pieces:
  """The vocabulary of a file, repaired where llama.cpp repairs it: one text and type per id, no text twice."""

  tokens: list[str]
  types: list[int]
  ends: list[int]  # ids that end a turn


def from_gguf(fields: Mapping[str, Any]) -> tokenizers_lib.Tokenizer:
  """Returns the tokenizer of a GGUF file's metadata.

  Raises:
    ValueError: the vocabulary's kind or its splitting rule is unknown (the message lists those that are known), or a
      field is missing or of the wrong kind.
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
  # llama.cpp's defaults where the file says nothing.
  knows = kind == 'llama' or fields.get('tokenizer.ggml.pre') in _LLAMA3
  settings['add_bos_token'] = _flag(fields, 'add_bos_token', knows)
  try:
    return kinds[kind](fields, settings, pieces)
  except ValueError:
    raise
  except Exception as e:  # both libraries raise their own, and bare Exception
    raise ValueError(f'its vocabulary cannot be used: {e}') from e


def _list(fields: Mapping[str, Any], name: str, kind: Any, length: int | None = None) -> list[Any]:
  """Returns an array of the vocabulary. Raises ValueError if it is missing, or not what it should be."""
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
  """Returns a role's id. One that no token has is left out with a warning, as in llama.cpp."""
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
  """Returns the vocabulary. `infer`: pieces of SentencePiece, whose types follow from their texts if none are given."""
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
    # Converters often type a model's markers as ordinary tokens: then a chat would not contain them.
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
  if not isinstance(tag, str) or tag not in PRE_TOKENIZERS:
    raise errors.unknown('GGUF pre-tokenizer', tag, PRE_TOKENIZERS)
  added = {id: type == CONTROL for id, type in enumerate(pieces.types) if type in (CONTROL, USER_DEFINED)}
  merges = [merge.split(' ') for merge in _list(fields, 'merges', str)]
  if wrong := [merge for merge in merges if len(merge) != 2]:
    raise ValueError(f'tokenizer.ggml.merges has {" ".join(wrong[0])!r}; expected two tokens and a space between')
  vocabulary = {token: id for id, token in enumerate(pieces.tokens)}
  return byte_level_bpe(vocabulary, merges, settings, added=added, pre=tag)


def byte_level_bpe(
  vocabulary: Mapping[str, int],
  merges: Sequence[Sequence[str]],
  settings: Mapping[str, Any],
  *,
  added: Mapping[int, bool],
  pre: str = 'gpt-2',
) -> tokenizers_lib.Tokenizer:
  """Returns GPT-2's kind of tokenizer. `added`: ids never split nor merged, and whether each is special."""
  tokens = {id: token for token, id in vocabulary.items()}
  processor = None
  bos = settings.get('bos_token_id')
  if settings.get('add_bos_token') and isinstance(bos, int) and bos in tokens:
    single = [{'SpecialToken': {'id': tokens[bos], 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}]
    pair = [*single, {'Sequence': {'id': 'B', 'type_id': 1}}]
    special = {tokens[bos]: {'id': tokens[bos], 'ids': [bos], 'tokens': [tokens[bos]]}}
    processor = {'type': 'TemplateProcessing', 'single': single, 'pair': pair, 'special_tokens': special}
  plain = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
  spec = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [{'id': id, 'content': tokens[id], 'special': special, **plain} for id, special in added.items()],
    'normalizer': {'type': 'NFC'} if PRE_TOKENIZERS[pre] is _RULES['qwen2'] else None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': PRE_TOKENIZERS[pre]},
    'post_processor': processor,
    'decoder': _GPT2,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': False,
      'ignore_merges': pre in _LLAMA3,
      'vocab': dict(vocabulary),
      'merges': [list(merge) for merge in merges],
    },
  }
  return tokenizers_lib.HuggingFaceTokenizer(json.dumps(spec, ensure_ascii=False), settings)


def _sentencepiece(fields: Mapping[str, Any], settings: dict[str, Any], pieces: _Pieces) -> tokenizers_lib.Tokenizer:
  from sentencepiece import sentencepiece_model_pb2

  tokens, types = pieces.tokens, pieces.types
  scores = _list(fields, 'scores', int | float, len(tokens))
  unknown = types.index(UNKNOWN) if UNKNOWN in types else settings['unk_token_id'] or 0
  types = [UNKNOWN if i == unknown else UNUSED if type == UNKNOWN else type for i, type in enumerate(types)]
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
