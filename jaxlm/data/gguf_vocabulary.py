"""The tokenizer inside a GGUF file: its vocabulary is metadata, its splitting rule is a tag that stands for a regex."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from jaxlm import errors
from jaxlm.data import tokenizers as tokenizers_lib

_GPT2 = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
_NO_REGEX = _GPT2 | {'use_regex': False}
_REGEX = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{numbers}"
  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _split(numbers: str) -> list[dict[str, Any]]:
  pattern = {'Regex': _REGEX.format(numbers=numbers)}
  return [{'type': 'Split', 'pattern': pattern, 'behavior': 'Isolated', 'invert': False}, _NO_REGEX]


PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
  'gpt-2': [_GPT2],
  'default': [_GPT2],
  'smollm': [{'type': 'Digits', 'individual_digits': True}, _GPT2],
  'llama-bpe': _split('{1,3}'),
  'qwen2': _split(''),
}
"""How text is cut before merging, by 'tokenizer.ggml.pre'."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # 'tokenizer.ggml.token_type'


def from_gguf(fields: Mapping[str, Any]) -> tokenizers_lib.Tokenizer:
  """Returns the tokenizer of a GGUF file's metadata.

  Raises:
    ValueError: the vocabulary's kind or its splitting rule is unknown; the message lists those that are known.
  """
  kind = fields.get('tokenizer.ggml.model')
  kinds = {'gpt2': _byte_level_bpe, 'llama': _sentencepiece}
  if kind not in kinds:
    raise errors.unknown('GGUF vocabulary', kind, kinds)
  names = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding'}
  settings: dict[str, Any] = {'chat_template': fields.get('tokenizer.chat_template')}
  for ours, theirs in names.items():
    id = fields.get(f'tokenizer.ggml.{theirs}_token_id')
    settings[f'{ours}_token_id'] = None if id is None else int(id)
  ends = (fields.get(f'tokenizer.ggml.{name}_token_id') for name in ('eot', 'eom'))
  settings['stop_token_ids'] = [int(id) for id in ends if id is not None]
  # llama.cpp's defaults where the file says nothing.
  settings['add_bos_token'] = bool(fields.get('tokenizer.ggml.add_bos_token', kind == 'llama'))
  return kinds[kind](fields, settings)


def _byte_level_bpe(fields: Mapping[str, Any], settings: dict[str, Any]) -> tokenizers_lib.Tokenizer:
  tag = fields.get('tokenizer.ggml.pre', 'default')
  if tag not in PRE_TOKENIZERS:
    raise errors.unknown('GGUF pre-tokenizer', tag, PRE_TOKENIZERS)
  tokens = list(fields['tokenizer.ggml.tokens'])
  types = fields.get('tokenizer.ggml.token_type')
  types = [NORMAL] * len(tokens) if types is None else [int(t) for t in types]
  added = {id: type == CONTROL for id, type in enumerate(types) if type in (CONTROL, USER_DEFINED)}
  merges = [merge.split(' ') for merge in fields['tokenizer.ggml.merges']]
  return byte_level_bpe({token: id for id, token in enumerate(tokens)}, merges, settings, added=added, pre=tag)


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
    'normalizer': {'type': 'NFC'} if pre == 'qwen2' else None,
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
      'ignore_merges': pre == 'llama-bpe',  # Llama 3 takes a whole word that is in the vocabulary as it is
      'vocab': dict(vocabulary),
      'merges': [list(merge) for merge in merges],
    },
  }
  return tokenizers_lib.HuggingFaceTokenizer(json.dumps(spec, ensure_ascii=False), settings)


def _sentencepiece(fields: Mapping[str, Any], settings: dict[str, Any]) -> tokenizers_lib.Tokenizer:
  from sentencepiece import sentencepiece_model_pb2

  tokens = list(fields['tokenizer.ggml.tokens'])
  scores = fields['tokenizer.ggml.scores']
  types = fields.get('tokenizer.ggml.token_type', [NORMAL] * len(tokens))
  model = sentencepiece_model_pb2.ModelProto()
  for token, score, type in zip(tokens, scores, types, strict=True):
    model.pieces.add(piece=token, score=float(score), type=int(type))
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = trainer.BPE
  trainer.vocab_size = len(tokens)
  trainer.byte_fallback = any(int(t) == BYTE for t in types)
  trainer.unk_id = next((i for i, t in enumerate(types) if int(t) == UNKNOWN), 0)
  for name in ('bos', 'eos', 'pad'):
    id = settings[f'{name}_token_id']
    setattr(trainer, f'{name}_id', -1 if id is None else id)
    if id is not None:
      setattr(trainer, f'{name}_piece', tokens[id])
  trainer.unk_piece = tokens[trainer.unk_id]
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = bool(fields.get('tokenizer.ggml.add_space_prefix', True))
  normalizer.remove_extra_whitespaces = bool(fields.get('tokenizer.ggml.remove_extra_whitespaces', False))
  normalizer.escape_whitespaces = True
  return tokenizers_lib.SentencePieceTokenizer(model.SerializeToString(), settings)
