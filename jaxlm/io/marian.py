"""OPUS-MT: encoder-decoders in the Hugging Face form of Marian models (`MarianMTModel`), both ways.

Positions are computed, so the files' copies of them are left out. The padding id begins every target.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any
import warnings

import numpy as np

from jaxlm.errors import CheckpointError
from jaxlm.io import safetensors_files, weights
from jaxlm.io.fields import ACTIVATIONS, MOST_LAYERS, Fields
from jaxlm.seq2seq_config import Seq2SeqConfig

MODEL_TYPE, ARCHITECTURE = 'marian', 'MarianMTModel'
BIAS = 'final_logits_bias'
_IGNORED = re.compile(r'(^|\.)(embed_positions|encoder\.embed_tokens|decoder\.embed_tokens)\.weight$|^lm_head\.weight$')

# Our names in a layer -> the file's name, and its axes (see `jaxlm.io.weights`).
_PROJECTIONS = {'q': ('q_proj', 'NH'), 'k': ('k_proj', 'KH'), 'v': ('v_proj', 'KH'), 'o': ('out_proj', 'D')}
_COMMON = {
  'attention_norm': 'self_attn_layer_norm',
  'cross_norm': 'encoder_attn_layer_norm',
  'mlp_norm': 'final_layer_norm',
}


def read_config(fields: Fields) -> Seq2SeqConfig:
  """Returns the config of a Marian config.json. Raises CheckpointError naming a field that we do not compute."""
  f = fields
  f.only('quantization_config', None, 'weights quantised by another library are not read; get the plain ones')
  f.only('normalize_before', False, 'Marian models have their norms after each sub-layer')
  f.only('normalize_embedding', False, 'embeddings have no norm of their own')
  f.only('static_position_embeddings', True, 'positions are sinusoids')
  f.only('share_encoder_decoder_embeddings', True, 'source and target share one vocabulary here')
  f.only('tie_word_embeddings', True, 'the embedding is the output layer')
  whole, D = f.whole, f.whole('d_model')
  for side in ('encoder', 'decoder'):
    f.only(f'{side}_attention_heads', whole('encoder_attention_heads'), 'encoder and decoder have as many heads')
    f.only(f'{side}_ffn_dim', whole('encoder_ffn_dim'), 'the MLPs of encoder and decoder are as wide')
  vocabulary, pad = whole('vocab_size'), whole('pad_token_id', least=0)
  f.only('decoder_vocab_size', vocabulary, 'source and target share one vocabulary here')
  try:
    return Seq2SeqConfig(
      vocab_size=vocabulary, start_id=whole('decoder_start_token_id', pad, least=0), eos_id=whole('eos_token_id', least=0),
      pad_id=pad, encoder_layers=whole('encoder_layers', most=MOST_LAYERS), model_dim=D,
      decoder_layers=whole('decoder_layers', most=MOST_LAYERS), num_heads=whole('encoder_attention_heads'),
      mlp_dim=whole('encoder_ffn_dim'), max_length=whole('max_position_embeddings'), norm_placement='post',
      activation=f.activation('activation_function', 'gelu'), scaled_embeddings=f.flag('scale_embedding', False),
      output_bias=True,
    )  # fmt: skip
  except ValueError as e:
    raise CheckpointError(f'{f.source}: {e}') from e


def write_config(config: Seq2SeqConfig) -> dict[str, Any]:
  """Returns the fields of config.json. Raises ValueError naming what Marian models do not have."""
  wanted = dict(norm_placement='post', norm='layernorm', norm_eps=1e-5, position='sinusoidal', embeddings='shared')
  wanted |= dict(biases=True, output_bias=True, markov_order=0, kind='autoregressive')
  if lost := [f'{name}={getattr(config, name)!r}' for name, value in wanted.items() if getattr(config, name) != value]:
    raise ValueError(f'This model has no Hugging Face form: Marian models cannot express {", ".join(lost)}.')
  c = config
  activation = 'swish' if c.activation == 'silu' else next(k for k, v in ACTIVATIONS.items() if v == c.activation)
  return dict(
    vocab_size=c.vocab_size, decoder_vocab_size=c.vocab_size, d_model=c.model_dim, encoder_layers=c.encoder_layers,
    decoder_layers=c.decoder_layers, encoder_attention_heads=c.num_heads, decoder_attention_heads=c.num_heads,
    encoder_ffn_dim=c.mlp_dim, decoder_ffn_dim=c.mlp_dim, max_position_embeddings=c.max_length,
    activation_function=activation, scale_embedding=c.scaled_embeddings, is_encoder_decoder=True,
    normalize_before=False, normalize_embedding=False, static_position_embeddings=True,
    share_encoder_decoder_embeddings=True, tie_word_embeddings=True, decoder_start_token_id=c.start_id,
    eos_token_id=c.eos_id, forced_eos_token_id=c.eos_id, pad_token_id=c.pad_id, bad_words_ids=[[c.pad_id]], bos_token_id=None,
  )  # fmt: skip


def entries(config: Seq2SeqConfig) -> list[weights.Entry]:
  """Returns where every parameter lies."""
  found = [weights.Entry('embed/embedding', 'model.shared.weight', 'V,D'), weights.Entry('output_bias', BIAS, 'V')]
  for stack, layers in (('encoder', config.encoder_layers), ('decoder', config.decoder_layers)):
    for i in range(layers):
      found += _layer(f'{stack}/layer_{i}', f'model.{stack}.layers.{i}', stack == 'decoder')
  return found


def _layer(ours: str, theirs: str, is_decoder: bool) -> list[weights.Entry]:
  found = []
  attentions = {'attention': 'self_attn'} | ({'cross': 'encoder_attn'} if is_decoder else {})
  for name, file in attentions.items():
    for part, (projection, out) in _PROJECTIONS.items():
      kernel = 'D,NH' if part == 'o' else f'{out},D'
      found.append(weights.Entry(f'{ours}/{name}/{part}/kernel', f'{theirs}.{file}.{projection}.weight', kernel))
      found.append(weights.Entry(f'{ours}/{name}/{part}/bias', f'{theirs}.{file}.{projection}.bias', out))
  for name, file in _COMMON.items():
    if is_decoder or name != 'cross_norm':
      found.append(weights.Entry(f'{ours}/{name}/scale', f'{theirs}.{file}.weight', 'D'))
      found.append(weights.Entry(f'{ours}/{name}/bias', f'{theirs}.{file}.bias', 'D'))
  for name, file, kernel, out in (('up', 'fc1', 'F,D', 'F'), ('down', 'fc2', 'D,F', 'D')):
    found.append(weights.Entry(f'{ours}/mlp/{name}/kernel', f'{theirs}.{file}.weight', kernel))
    found.append(weights.Entry(f'{ours}/mlp/{name}/bias', f'{theirs}.{file}.bias', out))
  return found


@dataclasses.dataclass(frozen=True)
class _OneRow:
  """A tensor [1, V] of a file as [V]."""

  tensor: weights.FileTensor

  @property
  def file(self) -> Path:
    return self.tensor.file

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(self.tensor.shape[1:])

  def rows(self, start: int, stop: int) -> np.ndarray:
    return self.tensor.rows(0, 1)[0, start:stop]


def our_tensors(tensors: Mapping[str, weights.FileTensor]) -> dict[str, weights.FileTensor]:
  """Returns a file's tensors without the copies and computed ones that it may hold besides."""
  kept = {name: tensor for name, tensor in tensors.items() if not _IGNORED.search(name)}
  for copy in ('model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight', 'lm_head.weight'):
    if 'model.shared.weight' not in kept and copy in tensors:
      kept['model.shared.weight'] = tensors[copy]
  if BIAS in kept and len(kept[BIAS].shape) == 2 and kept[BIAS].shape[0] == 1:
    kept[BIAS] = _OneRow(kept[BIAS])
  return kept


def load(directory: Path, fields: Fields, tensors: Mapping[str, Any], dtype: str, mesh: Any, tokenizer: Any) -> tuple:
  """Returns (config, params, tokenizer or None) of a Marian directory.

  Raises:
    CheckpointError: a part that is missing or does not fit; the message names it.
  """
  from jaxlm.data import marian_tokenizer

  config = read_config(fields)
  tokenizer = weights.own_tokenizer(lambda: marian_tokenizer.from_directory(directory), tokenizer, config, directory)
  if tokenizer is None:
    warnings.warn(f'{directory} has no tokenizer: the model takes and gives token ids.', stacklevel=2)
  params = weights.load(config, entries(config), our_tensors(tensors), dtype, mesh)
  return config.replace(dtype=dtype), params, tokenizer


def pending(config: Seq2SeqConfig, params: Any) -> list[safetensors_files.Pending]:
  """Returns the file's tensors, to be made one at a time. Raises ValueError if a parameter has another shape than the config's."""
  return [_as_row(one) if one.name == BIAS else one for one in weights.pending(config, entries(config), params)]


def _as_row(vector: safetensors_files.Pending) -> safetensors_files.Pending:
  """Returns the vector [V] as the tensor [1, V] that Marian files have."""
  return vector._replace(shape=(1, *vector.shape), make=lambda: vector.make()[None])
