"""Fingerprints of models, so that a saved cache or skip set is used only with the model that made it."""

from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import config as configs
from jaxlm.language_model import LanguageModel


def fingerprint(lm: LanguageModel) -> dict[str, Any]:
  """Returns the values that two models must share to use one cache: config fields, and a checksum of the weights.

  The checksum reads up to 64 numbers of each parameter array, rounded to bfloat16, so that float32 weights and their bfloat16 copy
  have the same checksum.
  """
  return {
    **configs.computing_fields(lm.config),
    'checksum of weights': zlib.crc32(np.asarray(_some_of_each(lm.params)).tobytes()),
  }


@jax.jit
def _some_of_each(params) -> jax.Array:
  rows = [x[(0,) * (x.ndim - 1)][:64] for x in jax.tree.leaves(params)]
  return jnp.concatenate([row.astype(jnp.bfloat16).astype(jnp.float32) for row in rows])
