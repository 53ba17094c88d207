"""What tells models apart, so that a saved cache or skip set is used with its own model only."""

from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import config as configs
from jaxlm.language_model import LanguageModel


def fingerprint(lm: LanguageModel) -> dict[str, Any]:
  """Returns what must be the same for a cache to fit: the shape of the model, and a checksum of some of each of its matrices.

  Weights in float32 and the same rounded to bfloat16 have one checksum.
  """
  return {
    **configs.computing_fields(lm.config),
    'checksum of weights': zlib.crc32(np.asarray(_some_of_each(lm.params)).tobytes()),
  }


@jax.jit
def _some_of_each(params) -> jax.Array:
  rows = [x[(0,) * (x.ndim - 1)][:64] for x in jax.tree.leaves(params)]
  return jnp.concatenate([row.astype(jnp.bfloat16).astype(jnp.float32) for row in rows])
