"""Small models that several tests share, so that they share compilations too."""

import functools

import jax

from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import Transformer, init_params

# All dimensions differ, so that a swapped axis fails.
TINY = ModelConfig(
  vocab_size=50, num_layers=2, model_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=20, max_length=64, dtype='float32'
)  # fmt: skip

# Compiled as a whole: run eagerly, each operation would be compiled apart.
init = jax.jit(init_params, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0, static_argnames='method')
def apply(config, params, *args, method=None, **kwargs):
  """Returns what `Transformer` does with these arguments, in one program."""
  return Transformer(config).apply({'params': params}, *args, method=method, **kwargs)


@functools.cache
def tiny_model(config: ModelConfig = TINY, seed: int = 0) -> LanguageModel:
  return LanguageModel(config, init(config, jax.random.key(seed)))
