"""Distributions of new parameters, by the name in `ModelConfig.init`; D model width, F MLP width, L layers.

  name     matrix [in, out]                      end of a gated MLP      embedding         output layer
  sink     N(0, 0.4 / in)                        N(0, 1 / (F L^2))       N(0, 0.4 / D)     N(0, 0.4 / D)
  normal   N(0, init_std^2)                      as other matrices       N(0, init_std^2)  N(0, init_std^2)
  xavier   U(-r, r), r^2 = 6 / (in + out)        as other matrices       N(0, 1 / D)       N(0, 1 / D)

sink is the initialisation in the attention-sink paper's code (https://arxiv.org/abs/2410.10781): the smaller variance at the
end of the MLP keeps the residual stream from growing with depth. xavier is used for translation models
(https://arxiv.org/abs/1706.03762). Biases are 0 and norm scales 1. Slots, sink token and distance table do not depend on the name.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn

from jaxlm.config import ModelConfig


class Initializers(NamedTuple):
  """Functions (key, shape, dtype) -> array. Matrices are [in, out], embeddings [rows, D]."""

  matrix: Callable
  mlp_out: Callable
  embedding: Callable
  head: Callable


def initializers(config: ModelConfig) -> Initializers:
  """Returns the initializers that `config.init` names; see the module's docstring."""
  normal, scaled, D = nn.initializers.normal, nn.initializers.variance_scaling, config.model_dim
  if config.init == 'normal':
    return Initializers(*4 * (normal(config.init_std),))
  if config.init == 'xavier':
    uniform = nn.initializers.xavier_uniform()
    return Initializers(uniform, uniform, normal(D**-0.5), normal(D**-0.5))
  fan_in = scaled(0.4, 'fan_in', 'normal')
  mlp_out = normal(1.0 / (config.mlp_dim**0.5 * config.num_layers)) if config.gated_mlp else fan_in
  return Initializers(fan_in, mlp_out, scaled(0.4, 'fan_in', 'normal', in_axis=1, out_axis=0), fan_in)
