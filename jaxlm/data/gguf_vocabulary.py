"""The tokenizer inside a GGUF file: its vocabulary is metadata, its splitting rule is a tag that stands for a regex."""

from collections.abc import Mapping
from typing import Any

from jaxlm import errors
from jaxlm.data import byte_level_bpe
from jaxlm.data import tokenizers as tokenizers_lib

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
  if tag not in byte_level_bpe.PRE_TOKENIZERS:
    raise errors.unknown('GGUF pre-tokenizer', tag, byte_level_bpe.PRE_TOKENIZERS)
  tokens = list(fields['tokenizer.ggml.tokens'])
  types = fields.get('tokenizer.ggml.token_type')
  types = [NORMAL] * len(tokens) if types is None else [int(t) for t in types]
  added = {id: type == CONTROL for id, type in enumerate(types) if type in (CONTROL, USER_DEFINED)}
  merges = [merge.split(' ') for merge in fields['tokenizer.ggml.merges']]
  vocabulary = {token: id for id, token in enumerate(tokens)}
  made = byte_level_bpe.tokenizer_json(vocabulary, merges, settings, added=added, pre=tag)
  return tokenizers_lib.HuggingFaceTokenizer(made, settings)


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
