"""Byte-level BPE (GPT-2's kind of tokenizer): builds a tokenizer.json from a vocabulary and merges."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

_GPT2 = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
_NO_REGEX = _GPT2 | {'use_regex': False}
_REGEX = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{numbers}"
  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _split(regex: str) -> list[dict[str, Any]]:
  return [{'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False}, _NO_REGEX]


# Mistral's rule: a capital letter also begins a word.
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
  'solar-open': _split(_REGEX.format(numbers='')),  # Qwen2's, but of models that do not normalise texts.
  'tekken': _split(_TEKKEN),
}
# Which tags stand for a rule, checked against llama.cpp's llama-vocab.cpp of July 2026. One differs: 'default' is the tag of files
# that were converted before there were tags, whatever their model's rule was. llama.cpp has a rule of its own for it, which is no
# model's; GPT-2's is that of more of these models.
_TAGS = {
  'gpt-2': 'default phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat mpt olmo a.x-4.0 mellum modern-bert exaone4 jais '
  'trillion granite-docling',
  'smollm': 'starcoder refact command-r codeshell exaone minerva-7b mellum2',
  'llama-bpe': 'llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe',
  'qwen2': 'deepseek-r1-qwen stablelm2 megrez hunyuan kormo f2llmv2',
  'solar-open': 'grok-2',
  'tekken': '',
}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
  tag: _RULES[rule] for rule, tags in _TAGS.items() for tag in (rule, *tags.split())
}
"""How text is cut before merging, by 'tokenizer.ggml.pre'."""
# Models that begin a text with BOS, and take a whole word that is in the vocabulary as it is. A file need not say so.
LLAMA3 = (
  'llama-bpe',
  'llama3',
  'llama-v3',
  'falcon3',
  'falcon-h1',
  'pixtral',
  'midm-2.0',
  'lfm2',
  'jina-v5-nano',
  'tekken',
)


def tokenizer_json(
  vocabulary: Mapping[str, int],
  merges: Sequence[Sequence[str]],
  settings: Mapping[str, Any],
  *,
  added: Mapping[int, bool],
  pre: str = 'gpt-2',
) -> str:
  """Returns the tokenizer.json of a byte-level BPE tokenizer. `added`: id of each added token -> whether it is special."""
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
      'ignore_merges': pre in LLAMA3,
      'vocab': dict(vocabulary),
      'merges': [list(merge) for merge in merges],
    },
  }
  return json.dumps(spec, ensure_ascii=False)
