"""Two random models of the size of transformer-base, all of whose translations have one length: speed does not need trained weights."""

from typing import Any

import jax
import numpy as np

from jaxlm.models import nat, seq2seq
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel

TOKENS = 25
"""Tokens of each translation. A teacher's last one may be any token."""


def model_config(kind: str, tiny: bool) -> Seq2SeqConfig:
  if tiny:
    return Seq2SeqConfig(
      kind=kind, vocab_size=50, encoder_layers=1, decoder_layers=1, model_dim=16, num_heads=2, mlp_dim=16, max_length=32, dtype='float32',
    )  # fmt: skip
  return Seq2SeqConfig(kind=kind, vocab_size=32000, max_length=256, dtype='float32')


def models(tiny: bool) -> tuple[Seq2SeqModel, Seq2SeqModel]:
  """Returns (a model that predicts all tokens at once, and finds the longest allowed length likeliest; its teacher)."""
  student, teacher = model_config('nat', tiny), model_config('autoregressive', tiny)
  params = jax.jit(lambda key: nat.init_params(student, key))(jax.random.key(0))
  # A large first number in all states of the encoder, by which the scores of the lengths rise.
  bias, table = (
    np.zeros(student.model_dim, np.float32),
    np.zeros((student.max_length + 1, student.model_dim), np.float32),
  )
  bias[0], table[:, 0] = 100, np.arange(student.max_length + 1) / 10
  params['encoder']['final_norm']['bias'], params['length_embed']['embedding'] = bias, table
  return (
    Seq2SeqModel(student, jax.tree.map(jax.numpy.asarray, params)),
    Seq2SeqModel(teacher, jax.jit(lambda key: seq2seq.init_params(teacher, key))(jax.random.key(1))),
  )


def sources(count: int, vocab_size: int) -> list[list[int]]:
  """Returns random sources of 20 to 30 tokens."""
  draw = np.random.default_rng(0)
  return [draw.integers(3, vocab_size - 1, draw.integers(20, 31)).tolist() for _ in range(count)]


def options() -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the options of `decoders.translate` for (the student, the teacher)."""
  return {'max_new_tokens': TOKENS, 'dedup': False}, {'max_new_tokens': TOKENS, 'min_new_tokens': TOKENS - 1}
