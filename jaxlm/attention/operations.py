"""Attention operations: how float32 logits and a mask become weights.

  o_t = sum_s w_ts v_s,   w_ts = a sim(s_ts) / Z_t,   s_ts = q_t . k_s / sqrt(H) + ...

Every operation of the attention-sink paper (https://arxiv.org/abs/2410.10781, table of attention operations) is one
function from float32 logits and a mask to weights, and one entry in OPERATIONS. Masked weights are 0. For operations whose
similarity is a kernel, phi(q) . phi(k) / sqrt(H), the block has already applied phi to queries and keys.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

EPS = 1e-8


def softmax(logits, visible, power=1.0):
  # A finite floor keeps fully masked rows (padding) at uniform weights instead of NaN.
  masked = jnp.where(visible, logits, jnp.finfo(logits.dtype).min)
  if power == 1.0:
    return jax.nn.softmax(masked, axis=-1)
  masked = jnp.where(visible, power * logits, jnp.finfo(logits.dtype).min)
  return jnp.exp(jax.nn.log_softmax(masked, axis=-1) / power)


def sigmoid(logits, visible):
  return jnp.where(visible, jax.nn.sigmoid(logits), 0.0)


def sigmoid_norm(logits, visible, power=1.0):
  return _divided_by_sum(jax.nn.sigmoid(logits), visible, power)


def sigmoid_len(logits, visible):
  """Sigmoid attention divided by the number of visible keys (https://arxiv.org/abs/2409.04431)."""
  return sigmoid(logits, visible) / _count(visible)


def sigmoid_sqrtlen(logits, visible):
  return sigmoid(logits, visible) / jnp.sqrt(_count(visible))


def elu1(logits, visible):
  return jnp.where(visible, jax.nn.elu(logits) + 1, 0.0)


def elu1_norm(logits, visible, power=1.0):
  return _divided_by_sum(jax.nn.elu(logits) + 1, visible, power)


def identity(logits, visible):
  return jnp.where(visible, logits, 0.0)


def identity_norm(logits, visible):
  w = identity(logits, visible)
  return w / jnp.maximum(jnp.abs(w.sum(axis=-1, keepdims=True)), 1.0)


def kernel_elu1_norm(logits, visible):
  return _divided_by_sum(logits, visible, 1.0)


def _divided_by_sum(similarity, visible, power):
  w = jnp.where(visible, similarity, 0.0)
  if power == 1.0:
    return w / (w.sum(axis=-1, keepdims=True) + EPS)
  # The power is taken before masking: 0 ** p has no gradient for p < 1.
  total = jnp.where(visible, jnp.maximum(similarity, EPS) ** power, 0.0).sum(axis=-1, keepdims=True)
  return w / (jnp.maximum(total, EPS) ** (1 / power) + EPS)


def _count(visible):
  return jnp.maximum(visible.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)


OPERATIONS: dict[str, Callable] = {
  'softmax': softmax,
  'sigmoid': sigmoid,
  'sigmoid_norm': sigmoid_norm,
  'sigmoid_len': sigmoid_len,
  'sigmoid_sqrtlen': sigmoid_sqrtlen,
  'elu1': elu1,
  'elu1_norm': elu1_norm,
  'identity': identity,
  'identity_norm': identity_norm,
  'kernel_elu1': identity,
  'kernel_elu1_norm': kernel_elu1_norm,
  'mlp': identity,
  'mlp_norm': identity_norm,
}
KERNELS = {'kernel_elu1': 'elu1', 'kernel_elu1_norm': 'elu1', 'mlp': 'mlp', 'mlp_norm': 'mlp'}
