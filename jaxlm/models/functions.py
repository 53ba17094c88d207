"""The transformer as pure functions of (params, config, arrays), for callers that do not use its Linen modules.

  hidden_BTD, cache = hidden(params, config, tokens)
  logits_BTV = logits(params, config, hidden_BTD)

The first functions take the parameters of a whole model. Functions with an argument `layer_params` take the parameters of one
layer, for example `params['layer_0']`. Methods of the same names are in `jaxlm.models.transformer` and `jaxlm.models.blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxlm import caches
from jaxlm.config import ModelConfig
from jaxlm.models.blocks import Block
from jaxlm.models.transformer import Transformer

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


def hidden(
  params: Any,
  config: ModelConfig,
  tokens: Int[Array, 'B T'],
  positions: Int[Array, 'B T'] | None = None,
  cache: Any = None,
  length: Int[Array, ' B'] | None = None,
  key: Array | None = None,
) -> tuple[Float[Array, 'B T D'], Any]:
  """Returns (states after the final norm in the config's dtype, the extended cache).

  Args:
    params: parameters of the model, as `init_params` returns them.
    config: config of the model.
    tokens: int32 token ids.
    positions: int32 position of each token (None: 0, 1, ...).
    cache: a `caches.Cache` (None: `caches.Sequence()`).
    length: int32 final number of tokens of each sequence, used only by dynamic RoPE scaling (None: T).
    key: random key for dropout in training (None: no dropout, for evaluation and decoding).
  """
  return _model(params, config, Transformer.hidden, tokens, positions, cache, length, key)


def text_states(
  params: Any, config: ModelConfig, tokens: Int[Array, 'B T'], mask: Bool[Array, 'B T']
) -> Float[Array, 'B T D']:
  """Returns `hidden` of texts that are padded on the right; the states of padding have no meaning."""
  # In a causal model no token sees later ones, so only an encoder needs to know the padding.
  cache = None if config.causal else caches.Sequence(mask.astype(jnp.int32))
  return hidden(params, config, tokens, cache=cache)[0]


def states(
  params: Any, config: ModelConfig, tokens: Int[Array, 'B T'], positions=None, cache=None, length=None, key=None
) -> tuple[list[Float[Array, 'B T D']], Any]:
  """Returns (the residual stream before each layer and after the last, the extended cache); arguments as for `hidden`."""
  return _model(params, config, Transformer.states, tokens, positions, cache, length, key)


def embedded(
  params: Any, config: ModelConfig, tokens: Int[Array, 'B T'], positions=None, fresh: bool = True, length=None
) -> tuple[Float[Array, 'B T D'], Int[Array, 'B T'], Any]:
  """Returns (input of the first layer, positions, position data of all layers).

  The position data are (RoPE's (cos, sin), distance table of relative_t5); each is None if the model does not use it.

  `fresh`: whether the tokens are the first of their sequence; a sink token, if the model has one, is then put before them.
  """
  return _model(params, config, Transformer.embedded, tokens, positions, fresh, length)


def normed(params: Any, config: ModelConfig, x: Float[Array, '... D']) -> Float[Array, '... D']:
  """Returns the states after the final norm, if there is one."""
  return _model(params, config, Transformer.normed, x)


def logits(params: Any, config: ModelConfig, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
  """Returns the float32 logits of states after the final norm."""
  return _model(params, config, Transformer.logits, hidden)


def output_matrix(params: Any, config: ModelConfig) -> Float[Array, 'D V']:
  """Returns the matrix of the output layer in the parameters' dtype: the transposed embedding if embeddings are tied."""
  return _model(params, config, Transformer.output_matrix)


def block(
  layer_params: Any, config: ModelConfig, layer: int, x: Float[Array, 'B T D'], positions, scheme, cache, key=None
) -> tuple[Float[Array, 'B T D'], Any]:
  """Returns (the residual stream after layer number `layer`, the extended cache)."""
  return _layer(layer_params, config, layer, Block.__call__, x, positions, scheme, cache, key)


def attention_block(
  layer_params: Any, config: ModelConfig, layer: int, x: Float[Array, 'B T D'], positions, scheme, cache, key=None
) -> tuple[Float[Array, 'B T D'], Any]:
  """Returns (the residual stream after the attention of layer number `layer`, the extended cache)."""
  return _layer(layer_params, config, layer, Block.attention_block, x, positions, scheme, cache, key)


def mlp_block(
  layer_params: Any, config: ModelConfig, layer: int, x: Float[Array, '... D'], before: Float[Array, '... D'], key=None
) -> Float[Array, '... D']:
  """Returns the residual stream after the MLP of layer number `layer`; `before` is the stream before its attention."""
  return _layer(layer_params, config, layer, Block.mlp_block, x, before, key)


def project_queries(
  layer_params: Any, config: ModelConfig, layer: int, x: Float[Array, 'B T D'], rotation
) -> Float[Array, 'B T N H']:
  """Returns the queries of x. The caller must apply the layer's norm before (`attention_input`).

  rotation: (cos, sin) of the positions; None: no rotation. `jaxlm.attention.positions.rotation_of` picks those of a layer from the
  first element of the last result of `embedded`.
  """
  project = lambda block, x, rotation: block.attention.project_queries(x, rotation)
  return _layer(layer_params, config, layer, project, x, rotation)


def project_keys_values(
  layer_params: Any, config: ModelConfig, layer: int, x: Float[Array, 'B S D'], rotation
) -> tuple[Float[Array, 'B S K H'], Float[Array, 'B S K H']]:
  """Returns keys and values of x; arguments as for `project_queries`. x may be another sequence than the queries'."""
  project = lambda block, x, rotation: block.attention.project_keys_values(x, rotation)
  return _layer(layer_params, config, layer, project, x, rotation)


def attention_input(
  layer_params: Any, config: ModelConfig, layer: int, x: Float[Array, '... D']
) -> Float[Array, '... D']:
  """Returns the input of a layer's attention: the residual stream x after the layer's norm (norm_placement='post': x)."""
  return _layer(layer_params, config, layer, Block.attention_input, x)


def mix(
  layer_params: Any,
  config: ModelConfig,
  layer: int,
  out: Float[Array, 'B T N H'],
  x: Float[Array, 'B T D'] | None = None,
) -> Float[Array, 'B T D']:
  """Returns the output projection of the heads' outputs. `x`: the input of attention, needed if the model has an output gate."""
  return _layer(layer_params, config, layer, lambda block, out, x: block.attention.mix(out, x), out, x)


def _model(params, config, method, *args):
  return Transformer(config).apply({'params': params}, *args, method=method)


def _layer(params, config, layer, method, *args):
  return Block(config, layer).apply({'params': params}, *args, method=method)
