"""Small models of every kind that sinks are measured on."""

import functools

import jax
import jax.numpy as jnp

from jaxlm.config import SinkConfig
from jaxlm.language_model import LanguageModel
from tests.models import TINY, tiny_model

CONFIGS = {
  'softmax': TINY,
  'sigmoid, key slot': TINY.replace(attention='sigmoid', sink=SinkConfig('k')),
  'softmax, key and value slot': TINY.replace(sink=SinkConfig('kv')),
  'elu1, logit slot': TINY.replace(attention='elu1', sink=SinkConfig('logit')),
  'softmax, sink token': TINY.replace(sink=SinkConfig('token')),
  'identity, alibi, window, prefix': TINY.replace(attention='identity', position='alibi', windows=(0, 6), prefix=3),
}


@functools.cache
def model(name):
  """A model whose heads differ: at initialisation attention is nearly uniform."""
  lm = tiny_model(CONFIGS[name])

  def sharper(path, x):
    keys = [p.key for p in path]
    if 'slot_logit' in keys:
      return jnp.linspace(-1, 2, x.size)
    return x * 2.5 if {'q', 'k', 'slot_key', 'slot_value', 'sink_token'} & set(keys) else x

  return LanguageModel(lm.config, jax.tree.map_with_path(sharper, lm.params))
