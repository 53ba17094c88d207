"""Small GliDe drafts for `tests.models.tiny_model`, which tests of several rooms share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ModelConfig, RopeConfig
from jaxlm.glide_config import GlideConfig, with_target
from jaxlm.glide_model import GlideDraft
from jaxlm.models import glide, glide_training
from tests.models import TINY, scripted_model, tiny_model

# Grouped queries, and another RoPE base than that of the draft's self-attention.
TARGET = TINY.replace(num_layers=3, max_length=128, rope=RopeConfig(theta=500000.0))
# Without random output matrices, an untrained draft would not depend on what its cross-attention reads.
SMALL = GlideConfig(model_dim=18, num_heads=3, mlp_dim=14, dtype='float32', init='sink', cross_start='random')

init = jax.jit(glide.init_params, static_argnums=0)
training_logits = jax.jit(glide_training.training_logits, static_argnums=0)
target_reads = jax.jit(glide_training.target_reads, static_argnums=(0, 3))


@functools.cache
def tiny_draft(target: ModelConfig = TARGET, seed: int = 1, **changes) -> GlideDraft:
  """Returns an untrained draft for `tiny_model(target)`."""
  config = with_target(SMALL.replace(**changes), tiny_model(target), 'tiny')
  return GlideDraft(config, init(config, jax.random.key(seed)))


def scripted_draft(lm, follow: dict[int, int], **changes) -> GlideDraft:
  """Returns a draft whose likeliest token after each token of `follow` is the one named there, like `scripted_model`."""
  V, D = lm.config.vocab_size, lm.config.model_dim
  config = with_target(SMALL.replace(model_dim=D, num_heads=1, **changes), lm, 'scripted')
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), glide.abstract_params(config))
  params['embed']['embedding'][np.arange(V), np.arange(V)] = 1
  params['final_norm']['scale'][:] = 1
  for before, after in follow.items():
    params['head'][before, after] = 1
  return GlideDraft(config, jax.tree.map(jnp.asarray, params))


FOLLOW = {i: (5 * i + 3) % 12 for i in range(12)}


@functools.cache
def scripted():
  """Returns (a model that follows FOLLOW, whose length is 128)."""
  return scripted_model(FOLLOW, 12, num_layers=3)
