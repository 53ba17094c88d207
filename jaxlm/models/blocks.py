"""The parts of a transformer: dense layers, norms, attention, MLP, and the block that combines them.

  x = x + attention(norm(x));  x = x + mlp(norm(x))

or norms in other places (`norm_placement`), or both from the same x (`parallel_residual`). The cache computes attention from
(layer, q, k, v). Dropout applies if a random key is given; each place with dropout in a layer folds a different number into the key.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jaxlm.attention import positions as rope
from jaxlm.attention.dropout import dropped
from jaxlm.attention.operations import KERNELS
from jaxlm.attention.rule import layer_rule
from jaxlm.config import ModelConfig
from jaxlm.models.initializers import initializers

ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'relu': jax.nn.relu,
}

# Numbers of the places with dropout in a layer; each is folded into the layer's key.
ATTENTION_WEIGHTS, ATTENTION_OUTPUT, MLP_HIDDEN, MLP_OUTPUT = range(4)


def folded(key, place: int):
  """Returns the key for a place or layer; None if `key` is None."""
  return None if key is None else jax.random.fold_in(key, place)


def dropped_at(x, rate: float, key, place: int):
  """Returns x after dropout with the key of this place; x itself if `key` is None or `rate` is 0."""
  return x if key is None or not rate else dropped(x, rate, folded(key, place))


class PlusOneRMSNorm(nn.Module):
  """y = x / sqrt(mean(x^2) + eps) (1 + scale) over the last axis, in float32; the result is rounded to `dtype` once.

  The 1 is not part of the parameter: in bfloat16 small scales would be lost beside it.
  """

  epsilon: float
  dtype: Any

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.zeros, (x.shape[-1],), jnp.float32).astype(jnp.float32)
    x = x.astype(jnp.float32)
    y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
    return (y * (1.0 + scale).reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


def rms_norm(config: ModelConfig, name: str | None = None) -> nn.Module:
  make = PlusOneRMSNorm if config.norm_plus_one else nn.RMSNorm
  return make(epsilon=config.norm_eps, dtype=config.dtype, name=name)


def norm(config: ModelConfig, name: str) -> nn.Module:
  if config.norm == 'rmsnorm':
    return rms_norm(config, name)
  return nn.LayerNorm(epsilon=config.norm_eps, dtype=config.dtype, name=name)


class Dense(nn.Module):
  """y = x W + b over the last axes of x. `inputs` + `features` is the shape of the kernel, such as [D, N, H].

  The product is computed as a matrix product [rows, in] x [in, out]: with weight gradients that contract over two axes, a
  training step takes a tenth longer on XLA's CPU backend.
  """

  inputs: tuple[int, ...]
  features: tuple[int, ...]
  use_bias: bool
  dtype: Any
  init: Callable

  @nn.compact
  def __call__(self, x):
    shape = math.prod(self.inputs), math.prod(self.features)
    kernel = self.param('kernel', lambda key: self.init(key, shape, jnp.float32).reshape(*self.inputs, *self.features))
    rows = x.shape[: x.ndim - len(self.inputs)]
    # With float32 products, which are rounded afterwards, XLA's CPU backend uses the processor's bfloat16 units. Elsewhere a product
    # that is bfloat16 is summed in float32 anyway.
    products = jnp.float32 if self.dtype == 'bfloat16' and jax.default_backend() == 'cpu' else None
    y = jnp.matmul(
      x.astype(self.dtype).reshape(-1, shape[0]),
      kernel.astype(self.dtype).reshape(shape),
      preferred_element_type=products,
    )
    y = y.astype(self.dtype).reshape(*rows, *self.features)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, self.features, jnp.float32)
      y = y + bias.astype(self.dtype).reshape((1,) * len(rows) + self.features)
    return y


class Attention(nn.Module):
  """Attention in parts: project and add positions, attend, mix the heads. `__call__` combines them to self-attention."""

  config: ModelConfig
  layer: int

  def setup(self):
    c = self.config
    init = initializers(c).matrix
    project = lambda heads: Dense((c.model_dim,), (heads, c.head_dim), c.qkv_bias, c.dtype, init)
    self.q, self.k, self.v = project(c.num_heads), project(c.num_kv_heads), project(c.num_kv_heads)
    if c.qk_norm:
      self.q_norm, self.k_norm = rms_norm(c), rms_norm(c)
    if KERNELS.get(c.attention) == 'mlp':
      make = lambda: Dense((c.head_dim,), (c.head_dim,), False, c.dtype, init)
      self.kernel_in, self.kernel_out = make(), make()
    if c.sink.kind == 'logit':
      self.slot_logit = self.param('slot_logit', nn.initializers.zeros, (c.num_heads,), jnp.float32)
    # A learned vector per head [K, H], or one for all heads [1, H]; N(0, 0.02^2) as in the attention-sink paper's code.
    per_head = nn.initializers.normal(0.02), (1 if c.sink.shared else c.num_kv_heads, c.head_dim), jnp.float32
    if c.sink.kind in ('kv', 'k'):
      self.slot_key = self.param('slot_key', *per_head)
    if c.sink.kind in ('kv', 'v'):
      self.slot_value = self.param('slot_value', *per_head)
    if c.output_gate != 'none':
      gates = (c.num_heads, c.head_dim if c.output_gate == 'element' else 1)
      self.output_gate = Dense((c.model_dim,), gates, False, c.dtype, init)
    mixed = (c.head_dim,) if c.head_mixing == 'sum' else (c.num_heads, c.head_dim)
    self.o = Dense(mixed, (c.model_dim,), c.out_bias, c.dtype, init)

  def project_queries(self, x_BTD, rotation):
    """Returns q [B, T, N, H] after norm, rotation (`rotation`: (cos, sin), or None for none) and the feature map phi."""
    q_BTNH = self.q(x_BTD)
    if self.config.qk_norm:
      q_BTNH = self.q_norm(q_BTNH)
    return self.feature_map(q_BTNH if rotation is None else rope.rotate(q_BTNH, *rotation))

  def project_keys_values(self, x_BSD, rotation):
    """Returns k and v, each [B, S, K, H]; k is processed as in `project_queries`. x may be another sequence than the queries'."""
    k_BSKH, v_BSKH = self.k(x_BSD), self.v(x_BSD)
    if self.config.qk_norm:
      k_BSKH = self.k_norm(k_BSKH)
    return self.feature_map(k_BSKH if rotation is None else rope.rotate(k_BSKH, *rotation)), v_BSKH

  def feature_map(self, x):
    """Returns phi(x) for kernel attention, else x. It is applied after positions, as in the attention-sink paper's code."""
    phi = KERNELS.get(self.config.attention)
    if phi is None:
      return x
    return jax.nn.elu(x) + 1 if phi == 'elu1' else self.kernel_out(jax.nn.relu(self.kernel_in(x)))

  def rule(self, table, key=None):
    """Returns the layer's AttentionRule. `table`: distance table of relative_t5, or None; `key`: for dropout, None: no dropout."""
    c = self.config
    rule = layer_rule(c, self.layer).replace(distance_table=table)
    if c.sink.kind in ('kv', 'k', 'logit'):
      rule = rule.replace(**self.slot())
    if rule.slot_key is not None and c.attention in KERNELS:
      rule = rule.replace(slot_key=self.feature_map(rule.slot_key.astype(c.dtype)))
    if key is not None and c.dropout.attention:
      rule = rule.replace(dropout=c.dropout.attention, dropout_key=key)
    return rule

  def mix(self, out_BTNH, x_BTD=None):
    """Returns the output projection of the heads' outputs, [B, T, D]. `x`: the input of attention, which an output gate reads."""
    c = self.config
    if c.sink.kind == 'v':
      value_NH = jnp.repeat(self.per_head(self.slot_value), c.num_heads // c.num_kv_heads, axis=0)
      out_BTNH = out_BTNH + value_NH[None, None].astype(c.dtype)
    if c.output_gate != 'none':
      if x_BTD is None:
        raise ValueError(
          f"output_gate={c.output_gate!r} reads the input of attention: pass it to `mix` beside the heads' outputs."
        )
      out_BTNH = out_BTNH * jax.nn.sigmoid(self.output_gate(x_BTD))
    return self.o(out_BTNH.sum(axis=2) if c.head_mixing == 'sum' else out_BTNH)

  def __call__(self, x_BTD, positions_BT, scheme, cache, key=None):
    rotations, table = scheme
    rotation = rope.rotation_of(self.config, rotations, self.layer)
    q_BTNH = self.project_queries(x_BTD, rotation)
    k_BTKH, v_BTKH = self.project_keys_values(x_BTD, rotation)
    out_BTNH, cache = cache.attend(self.layer, q_BTNH, k_BTKH, v_BTKH, positions_BT, self.rule(table, key))
    return self.mix(out_BTNH, x_BTD), cache

  def per_head(self, vector):
    return jnp.broadcast_to(vector, (self.config.num_kv_heads, self.config.head_dim))

  def slot(self) -> dict[str, Any]:
    c = self.config
    if c.sink.kind == 'logit':
      return {'slot_logit': self.slot_logit}
    key_KH = self.per_head(self.slot_key)
    if c.sink.kind == 'kv':
      return {'slot_key': key_KH, 'slot_value': self.per_head(self.slot_value)}
    if c.sink.learned_dims is not None:
      key_KH = jnp.where(jnp.arange(c.head_dim) < c.sink.learned_dims, key_KH, 0.0)
    one_H = jnp.ones(c.head_dim, jnp.float32)
    directions = {'unit': jnp.eye(c.head_dim, dtype=jnp.float32)[0], 'ones': one_H / c.head_dim**0.5}
    if c.sink.value == 'zero':
      return {'slot_key': key_KH}
    value_KH = jnp.broadcast_to(c.sink.value_scale * directions[c.sink.value], key_KH.shape)
    return {'slot_key': key_KH, 'slot_value': value_KH}


class MLP(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, key=None):
    c, init = self.config, initializers(self.config)
    widen = lambda name: Dense((c.model_dim,), (c.mlp_dim,), c.mlp_bias, c.dtype, init.matrix, name=name)
    hidden_BTF = widen('up')(x_BTD)
    if c.gated_mlp:
      hidden_BTF = ACTIVATIONS[c.activation](widen('gate')(x_BTD)) * hidden_BTF
    else:
      hidden_BTF = ACTIVATIONS[c.activation](hidden_BTF)
    hidden_BTF = dropped_at(hidden_BTF, c.dropout.mlp, key, MLP_HIDDEN)
    return Dense((c.mlp_dim,), (c.model_dim,), c.mlp_bias, c.dtype, init.mlp_out, name='down')(hidden_BTF)


class Block(nn.Module):
  """One layer. Attention and MLP are separate methods, so that a decoder can skip one of them."""

  config: ModelConfig
  layer: int

  def setup(self):
    c = self.config
    self.attention_norm, self.mlp_norm = norm(c, 'attention_norm'), norm(c, 'mlp_norm')
    if c.norm_placement in ('hybrid', 'sandwich'):
      self.attention_out_norm = norm(c, 'attention_out_norm')
    if c.norm_placement == 'sandwich':
      self.mlp_out_norm = norm(c, 'mlp_out_norm')
    self.attention, self.mlp = Attention(c, self.layer, name='attention'), MLP(c, name='mlp')

  def attention_input(self, x_BTD):
    """Returns the input of attention: the residual stream after the norm, or as it is with norm_placement='post'."""
    return x_BTD if self.config.norm_placement == 'post' else self.attention_norm(x_BTD)

  def attention_block(self, x_BTD, positions_BT, scheme, cache, key=None):
    """Returns (the residual stream after attention, the extended cache)."""
    c = self.config
    attended_BTD, cache = self.attention(
      self.attention_input(x_BTD), positions_BT, scheme, cache, folded(key, ATTENTION_WEIGHTS)
    )
    if c.norm_placement in ('hybrid', 'sandwich'):
      attended_BTD = self.attention_out_norm(attended_BTD)
    x_BTD = x_BTD + dropped_at(attended_BTD, c.dropout.residual, key, ATTENTION_OUTPUT)
    return self.attention_norm(x_BTD) if c.norm_placement == 'post' else x_BTD, cache

  def mlp_block(self, x_BTD, before_BTD, key=None):
    """Returns the residual stream after the MLP; `before` is the residual stream before attention."""
    c, post = self.config, self.config.norm_placement == 'post'
    read_BTD = x_BTD if post else self.mlp_norm(before_BTD if c.parallel_residual else x_BTD)
    out_BTD = self.mlp(read_BTD, key)
    if c.norm_placement == 'sandwich':
      out_BTD = self.mlp_out_norm(out_BTD)
    x_BTD = x_BTD + dropped_at(out_BTD, c.dropout.residual, key, MLP_OUTPUT)
    return self.mlp_norm(x_BTD) if post else x_BTD

  def __call__(self, x_BTD, positions_BT, scheme, cache, key=None):
    after_BTD, cache = self.attention_block(x_BTD, positions_BT, scheme, cache, key)
    return self.mlp_block(after_BTD, x_BTD, key), cache
