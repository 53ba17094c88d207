"""Small models that several tests share, so that they share compilations too."""

import functools

import jax

from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import init_params

# All dimensions differ, so that a swapped axis fails.
TINY = ModelConfig(
  vocab_size=50, num_layers=2, model_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=20, max_length=64, dtype='float32'
)  # fmt: skip


@functools.cache
def tiny_model(config: ModelConfig = TINY, seed: int = 0) -> LanguageModel:
  return LanguageModel(config, jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed)))
