"""What transformers are built of: dense layers, norms, attention, MLP, and the block that joins them.

  x = x + attention(norm(x));  x = x + mlp(norm(x))

or both at once from the same x (`parallel_residual`). Attention is whatever the cache makes of (layer, q, k, v).
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxlm.attention import positions as rope
from jaxlm.attention.operations import KERNELS
from jaxlm.attention.rule import layer_rule
from jaxlm.config import ModelConfig

ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
}
# Initialisation of the attention-sink paper's code: N(0, 0.4 / fan_in), and for a gated MLP's down-projection
# N(0, 1 / (F L^2)), which keeps the residual stream from growing with depth.
fan_in_init = nn.initializers.variance_scaling(0.4, 'fan_in', 'normal')
embed_init = nn.initializers.variance_scaling(0.4, 'fan_in', 'normal', in_axis=1, out_axis=0)


def norm(config: ModelConfig, name: str) -> nn.Module:
  make = nn.RMSNorm if config.norm == 'rmsnorm' else nn.LayerNorm
  return make(epsilon=config.norm_eps, dtype=config.dtype, name=name)


class Dense(nn.Module):
  """y = x W + b over the last axes of x. `inputs` and `features` are the kernel's shape, as in [D, N, H].

  The product itself is a plain matrix product [rows, in] x [in, out]: XLA's CPU backend takes a tenth longer for a
  training step whose weight gradients contract over two axes.
  """

  inputs: tuple[int, ...]
  features: tuple[int, ...]
  use_bias: bool
  dtype: Any
  init: Callable = fan_in_init

  @nn.compact
  def __call__(self, x):
    shape = math.prod(self.inputs), math.prod(self.features)
    kernel = self.param('kernel', lambda key: self.init(key, shape).reshape(*self.inputs, *self.features))
    rows = x.shape[: x.ndim - len(self.inputs)]
    y = x.astype(self.dtype).reshape(-1, shape[0]) @ kernel.astype(self.dtype).reshape(shape)
    y = y.reshape(*rows, *self.features)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, self.features)
      y = y + bias.astype(self.dtype).reshape((1,) * len(rows) + self.features)
    return y


class Attention(nn.Module):
  config: ModelConfig
  layer: int

  @nn.compact
  def __call__(self, x_BTD, positions_BT, scheme, cache):
    c = self.config
    rotation, table = scheme
    project = lambda heads, name: Dense((c.model_dim,), (heads, c.head_dim), c.qkv_bias, c.dtype, name=name)
    q_BTNH = project(c.num_heads, 'q')(x_BTD)
    k_BTKH = project(c.num_kv_heads, 'k')(x_BTD)
    v_BTKH = project(c.num_kv_heads, 'v')(x_BTD)
    if c.qk_norm:
      q_BTNH = nn.RMSNorm(epsilon=c.norm_eps, dtype=c.dtype, name='q_norm')(q_BTNH)
      k_BTKH = nn.RMSNorm(epsilon=c.norm_eps, dtype=c.dtype, name='k_norm')(k_BTKH)
    if rotation is not None:
      q_BTNH, k_BTKH = rope.rotate(q_BTNH, *rotation), rope.rotate(k_BTKH, *rotation)
    rule = layer_rule(c, self.layer).replace(distance_table=table)
    if c.sink.kind in ('kv', 'k', 'logit'):
      rule = rule.replace(**self.slot())
    if c.attention in KERNELS:  # After the positions, as in the attention-sink paper's code.
      phi = self.kernel()
      q_BTNH, k_BTKH = phi(q_BTNH), phi(k_BTKH)
      rule = rule if rule.slot_key is None else rule.replace(slot_key=phi(rule.slot_key.astype(q_BTNH.dtype)))
    out_BTNH, cache = cache.attend(self.layer, q_BTNH, k_BTKH, v_BTKH, positions_BT, rule)
    if c.sink.kind == 'v':
      value_NH = jnp.repeat(self.per_head('slot_value'), c.num_heads // c.num_kv_heads, axis=0)
      out_BTNH = out_BTNH + value_NH[None, None].astype(c.dtype)
    if c.head_mixing == 'sum':
      return Dense((c.head_dim,), (c.model_dim,), c.out_bias, c.dtype, name='o')(out_BTNH.sum(axis=2)), cache
    return Dense((c.num_heads, c.head_dim), (c.model_dim,), c.out_bias, c.dtype, name='o')(out_BTNH), cache

  def per_head(self, name: str):
    """A learned [K, H]; N(0, 0.02^2) as in the attention-sink paper's code."""
    c = self.config
    rows = 1 if c.sink.shared else c.num_kv_heads
    vector = self.param(name, nn.initializers.normal(0.02), (rows, c.head_dim))
    return jnp.broadcast_to(vector, (c.num_kv_heads, c.head_dim))

  def slot(self) -> dict[str, Any]:
    c = self.config
    if c.sink.kind == 'logit':
      return {'slot_logit': self.param('slot_logit', nn.initializers.zeros, (c.num_heads,))}
    key_KH = self.per_head('slot_key')
    if c.sink.kind == 'kv':
      return {'slot_key': key_KH, 'slot_value': self.per_head('slot_value')}
    if c.sink.learned_dims is not None:
      key_KH = jnp.where(jnp.arange(c.head_dim) < c.sink.learned_dims, key_KH, 0.0)
    directions = {'unit': jnp.eye(c.head_dim)[0], 'ones': jnp.ones(c.head_dim) / c.head_dim**0.5}
    if c.sink.value == 'zero':
      return {'slot_key': key_KH}
    value_KH = jnp.broadcast_to(c.sink.value_scale * directions[c.sink.value], key_KH.shape)
    return {'slot_key': key_KH, 'slot_value': value_KH}

  def kernel(self) -> Callable:
    """The feature map of queries and keys; one pair of matrices for all heads and for both."""
    c = self.config
    if KERNELS[c.attention] == 'elu1':
      return lambda x: jax.nn.elu(x) + 1
    make = lambda name: Dense((c.head_dim,), (c.head_dim,), False, c.dtype, name=name)
    first, second = make('kernel_in'), make('kernel_out')
    return lambda x: second(jax.nn.relu(first(x)))


class MLP(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c = self.config
    widen = lambda name: Dense((c.model_dim,), (c.mlp_dim,), c.mlp_bias, c.dtype, name=name)
    hidden_BTF = widen('up')(x_BTD)
    if c.gated_mlp:
      hidden_BTF = ACTIVATIONS[c.activation](widen('gate')(x_BTD)) * hidden_BTF
      init = nn.initializers.normal(1.0 / (c.mlp_dim**0.5 * c.num_layers))
    else:
      hidden_BTF, init = ACTIVATIONS[c.activation](hidden_BTF), fan_in_init
    return Dense((c.mlp_dim,), (c.model_dim,), c.mlp_bias, c.dtype, init, name='down')(hidden_BTF)


class Block(nn.Module):
  """One layer; its two halves are methods of their own, so that a decoder may leave one out."""

  config: ModelConfig
  layer: int

  def setup(self):
    c = self.config
    self.attention_norm, self.mlp_norm = norm(c, 'attention_norm'), norm(c, 'mlp_norm')
    if c.norm_placement == 'hybrid':
      self.attention_out_norm = norm(c, 'attention_out_norm')
    self.attention, self.mlp = Attention(c, self.layer, name='attention'), MLP(c, name='mlp')

  def attention_block(self, x_BTD, positions_BT, scheme, cache):
    """Returns (the residual stream after attention, the extended cache)."""
    placement = self.config.norm_placement
    read_BTD = x_BTD if placement == 'post' else self.attention_norm(x_BTD)
    attended_BTD, cache = self.attention(read_BTD, positions_BT, scheme, cache)
    if placement == 'hybrid':
      attended_BTD = self.attention_out_norm(attended_BTD)
    x_BTD = x_BTD + attended_BTD
    return self.attention_norm(x_BTD) if placement == 'post' else x_BTD, cache

  def mlp_block(self, x_BTD, before_BTD):
    """Returns the residual stream after the MLP; `before` is what attention read."""
    if self.config.norm_placement == 'post':
      return self.mlp_norm(x_BTD + self.mlp(x_BTD))
    return x_BTD + self.mlp(self.mlp_norm(before_BTD if self.config.parallel_residual else x_BTD))

  def __call__(self, x_BTD, positions_BT, scheme, cache):
    after_BTD, cache = self.attention_block(x_BTD, positions_BT, scheme, cache)
    return self.mlp_block(after_BTD, x_BTD), cache
