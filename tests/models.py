"""Small models that several tests share, so that they share compilations too."""

import functools

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

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


def scripted_model(follow: dict[int, int], vocab_size: int, tokenizer=None, num_layers: int = 4) -> LanguageModel:
  """Returns a model whose likeliest token after each token of `follow` is the one named there, whatever came before."""
  D = vocab_size + vocab_size % 2
  config = TINY.replace(vocab_size=vocab_size, num_layers=num_layers, model_dim=D, max_length=128)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), init(config, jax.random.key(0)))
  params['embed']['embedding'][np.arange(vocab_size), np.arange(vocab_size)] = 1
  params['final_norm']['scale'][:] = 1
  for before, after in follow.items():
    params['head'][before, after] = 1
  return LanguageModel(config, jax.tree.map(jnp.asarray, params), tokenizer)


def slow(*values):
  """Returns values of one parameter of a test as values that are tried in CI only."""
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def float64(on: bool = True):
  """Returns a context in which jax_enable_x64 is set, or not."""
  place = jax if hasattr(jax, 'enable_x64') else jax.experimental  # It has moved in jax 0.8.
  return place.enable_x64(on)


def living_cache_bytes() -> int:
  """Returns the bytes of all living arrays of the shape that caches of TINY and its kin have: four axes, two key heads.

  Other tests' modules hold some, so a test measures what is added to them.
  """
  return sum(x.nbytes for x in jax.live_arrays() if x.ndim == 4 and x.shape[1] == 2)
