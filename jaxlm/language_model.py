"""A language model in one value: config, parameters, tokenizer; and the way in and out for each format."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.config import ModelConfig
from jaxlm.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A decoder-only transformer with its parameters and, when it has one, its tokenizer."""

  config: ModelConfig
  params: Any
  tokenizer: Any = None


@functools.partial(jax.jit, static_argnames='config')
def _forward(params, tokens, *, config):
  return Transformer(config).apply({'params': params}, tokens)[0]


def forward(lm: LanguageModel, tokens: Int[Array, 'B T']) -> Float[Array, 'B T V']:
  """Returns float32 logits of a full forward pass, compiled once per shape. Pad rows on the right, with any id."""
  return _forward(lm.params, jnp.asarray(tokens), config=lm.config)
