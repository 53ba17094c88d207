"""A translation model in one value: config, parameters, tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol

import jax

from jaxlm.seq2seq_config import Seq2SeqConfig


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
    tokenizer = 'no tokenizer' if self.tokenizer is None else type(self.tokenizer).__name__
    return (
      f'Seq2SeqModel({c.encoder_layers} + {c.decoder_layers} layers x {c.model_dim}{order}, {size / 1e6:.1f} M parameters, '
      f'vocabulary {c.vocab_size}, {c.dtype}, {tokenizer})'
    )
