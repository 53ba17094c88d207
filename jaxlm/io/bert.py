"""BERT and its small kin such as MiniLM, from their Hugging Face form: encoders whose states represent the tokens of a text.

  x = norm(word + position + type),  then  x = norm(x + attention(x)),  x = norm(x + mlp(x))

in each layer. Every text has one part here, so the embedding of the first type is added to those of the positions. There is no output
layer: heads for masked words, pairs of sentences and the pooled [CLS] are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any

import numpy as np

from jaxlm.config import ModelConfig
from jaxlm.io import weights
from jaxlm.io.fields import MOST_LAYERS, Fields

MODEL_TYPE = 'bert'
_IGNORED = re.compile(r'^(cls|pooler|classifier|qa_outputs)\.|position_ids$')
_TYPES = 'embeddings.token_type_embeddings.weight'
_POSITIONS = 'embeddings.position_embeddings.weight'
# Our names in a layer -> the file's name, and the axes of its kernel and bias (see `jaxlm.io.weights`).
_DENSE = {
  **{f'attention/{x[0]}': (f'attention.self.{x}', f'{heads}H,D', f'{heads}H') for x, heads in (('query', 'N'), ('key', 'K'), ('value', 'K'))},
  'attention/o': ('attention.output.dense', 'D,NH', 'D'),
  'mlp/up': ('intermediate.dense', 'F,D', 'F'),
  'mlp/down': ('output.dense', 'D,F', 'D'),
}  # fmt: skip
_NORMS = {'attention_norm': 'attention.output.LayerNorm', 'mlp_norm': 'output.LayerNorm'}


def read_config(f: Fields) -> ModelConfig:
  """Returns the config of a BERT config.json. Raises CheckpointError naming a field that is not computed."""
  f.only('quantization_config', None, 'weights quantised by another library are not read; get the plain ones')
  f.only('position_embedding_type', 'absolute', 'positions have learned embeddings')
  f.only('is_decoder', False, 'a BERT that writes text is another model')
  f.only('add_cross_attention', False, 'an encoder has none')
  return f.config(_fields)


def _fields(f: Fields) -> dict[str, Any]:
  heads = f.whole('num_attention_heads')
  return dict(
    vocab_size=f.whole('vocab_size'), num_layers=f.whole('num_hidden_layers', most=MOST_LAYERS), model_dim=f.whole('hidden_size'),
    num_heads=heads, num_kv_heads=heads, head_dim=f.head_dim('hidden_size', 'num_attention_heads'),
    mlp_dim=f.whole('intermediate_size'), max_length=f.whole('max_position_embeddings'), norm='layernorm',
    norm_eps=f.number('layer_norm_eps', 1e-12), norm_placement='post', embedding_norm=True, activation=f.activation('hidden_act', 'gelu'),
    gated_mlp=False, position='learned', causal=False, tied_embeddings=True, qkv_bias=True, out_bias=True, mlp_bias=True,
  )  # fmt: skip


def entries(config: ModelConfig) -> list[weights.Entry]:
  """Returns where every parameter lies."""
  Entry = weights.Entry
  found = [
    Entry('embed/embedding', 'embeddings.word_embeddings.weight', 'V,D'),
    Entry('position_embed/embedding', _POSITIONS, 'P,D'),
    *_norm('embedding_norm', 'embeddings.LayerNorm'),
  ]
  for i in range(config.num_layers):
    ours, theirs = f'layer_{i}', f'encoder.layer.{i}'
    for path, (name, kernel, bias) in _DENSE.items():
      found.append(Entry(f'{ours}/{path}/kernel', f'{theirs}.{name}.weight', kernel))
      found.append(Entry(f'{ours}/{path}/bias', f'{theirs}.{name}.bias', bias))
    for path, name in _NORMS.items():
      found += _norm(f'{ours}/{path}', f'{theirs}.{name}')
  return found


def _norm(path: str, name: str) -> list[weights.Entry]:
  return [weights.Entry(f'{path}/scale', f'{name}.weight', 'D'), weights.Entry(f'{path}/bias', f'{name}.bias', 'D')]


@dataclasses.dataclass(frozen=True)
class _WithFirstType:
  """The embeddings of the positions, with that of the first type added to each."""

  positions: weights.FileTensor
  types: weights.FileTensor

  @property
  def file(self) -> Path:
    return self.positions.file

  @property
  def shape(self) -> tuple[int, ...]:
    return self.positions.shape

  def rows(self, start: int, stop: int) -> np.ndarray:
    return self.positions.rows(start, stop) + self.types.rows(0, 1)


def our_tensors(tensors: Mapping[str, weights.FileTensor]) -> dict[str, weights.FileTensor]:
  """Returns a file's tensors by their names without the prefix 'bert.', without heads, and with types added to positions."""
  kept = {name.removeprefix('bert.'): tensor for name, tensor in tensors.items()}
  kept = {name: tensor for name, tensor in kept.items() if not _IGNORED.search(name)}
  types = kept.pop(_TYPES, None)
  if types is not None and _POSITIONS in kept:
    kept[_POSITIONS] = _WithFirstType(kept[_POSITIONS], types)
  return kept


def load(directory: Path, fields: Fields, tensors: Mapping[str, Any], dtype: str, mesh: Any, tokenizer: Any) -> tuple:
  """Returns (config, params, tokenizer or None). The tokenizer's BOS and EOS are [CLS] and [SEP].

  Raises:
    CheckpointError: a part that is missing or does not fit; the message names it.
  """
  config = read_config(fields)
  tokenizer = weights.own_tokenizer(lambda: _tokenizer(directory), tokenizer, config, directory)
  params = weights.load(config, entries(config), our_tensors(tensors), dtype, mesh)
  return config.replace(dtype=dtype), params, tokenizer


def _tokenizer(directory: Path) -> Any:
  from jaxlm.data import tokenizers

  found = tokenizers.from_directory(directory)
  if found is not None and (first := found.role_texts.get('cls_token')) and (last := found.role_texts.get('sep_token')):
    found.bos_id, found.eos_id, found.adds_bos = found.token_id(first), found.token_id(last), True
  return found
