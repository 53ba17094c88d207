"""A translation model in one value: config, parameters, tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol

import jax

from jaxlm.models import nat, seq2seq
from jaxlm.models.registry import RunKind
from jaxlm.seq2seq_config import Seq2SeqConfig, seq2seq_config


class TranslationTokenizer(Protocol):
  """What a translation model needs of its tokenizer, which may have one vocabulary for both languages or two."""

  def encode_source(self, text: str) -> list[int]:
    """Returns the ids of a source text, without EOS."""
    ...

  def decode_target(self, ids: Sequence[int]) -> str:
    """Returns the text of target ids, which hold no EOS."""
    ...


@dataclasses.dataclass(frozen=True)
class Seq2SeqModel:
  """An encoder-decoder with its parameters and, when it has one, its tokenizer."""

  config: Seq2SeqConfig
  params: Any
  tokenizer: TranslationTokenizer | None = None

  def __repr__(self) -> str:
    c, size = self.config, sum(x.size for x in jax.tree.leaves(self.params))
    order = f', Markov order {c.markov_order} ({c.markov_mode})' if c.markov_order else ''
    order = f', {c.kind}' if c.is_parallel else order
    tokenizer = 'no tokenizer' if self.tokenizer is None else type(self.tokenizer).__name__
    return (
      f'Seq2SeqModel({c.encoder_layers} + {c.decoder_layers} layers x {c.model_dim}{order}, {size / 1e6:.1f} M parameters, '
      f'vocabulary {c.vocab_size}, {c.dtype}, {tokenizer})'
    )


def _tokenizers(folder: Any) -> TranslationTokenizer:
  from jaxlm.data import pair_tokenizers

  return pair_tokenizers.load(folder)


def _abstract_params(config: Seq2SeqConfig) -> Any:
  return (nat if config.is_parallel else seq2seq).abstract_params(config)


RUNS = RunKind('an encoder-decoder', seq2seq_config, _abstract_params, Seq2SeqModel, _tokenizers)
