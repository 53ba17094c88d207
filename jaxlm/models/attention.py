"""Attention with a swappable weight function.

  o_t = sum_s w_ts v_s,   w_ts = a sim(s_ts) / Z_t,   s_ts = q_t . k_s / sqrt(H) + ...

Every operation of the attention-sink paper (https://arxiv.org/abs/2410.10781, table of attention operations) is one
function from float32 logits and a mask to weights, and one entry in OPERATIONS. Masked weights are 0. Operations whose
similarity is a kernel, phi(q) . phi(k) / sqrt(H), get queries and keys that the block has already put through phi.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.models.schemes import distance_scores

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

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


@struct.dataclass
class AttentionRule:
  """What a cache needs to know of a layer to attend for it. Arrays are the layer's parameters; the rest is static."""

  operation: str = struct.field(pytree_node=False)
  scale: float = struct.field(pytree_node=False)
  softcap: float | None = struct.field(pytree_node=False, default=None)
  window: int | None = struct.field(pytree_node=False, default=None)
  prefix: int = struct.field(pytree_node=False, default=0)
  power: float = struct.field(pytree_node=False, default=1.0)
  row_sum: float = struct.field(pytree_node=False, default=1.0)
  offset: float = struct.field(pytree_node=False, default=0.0)
  position: str = struct.field(pytree_node=False, default='none')
  slot_key: Array | None = None  # [K, H]: a key that every query sees, at no position
  slot_value: Array | None = None  # [K, H]; None is 0
  slot_logit: Array | None = None  # [N]: a logit instead of a key
  distance_table: Array | None = None  # [N, 32], of relative_t5

  @property
  def has_slot(self) -> bool:
    return self.slot_key is not None or self.slot_logit is not None

  def visible(self, q_positions_BT, k_positions) -> Bool[Array, '...']:
    """Which keys each query may see: not in its future, not before its window; and always the prefix.

    [B, T, S], or [B, K, T, S] if the keys stand at other positions in each head.
    """
    distance = distances(q_positions_BT, k_positions)
    visible = distance >= 0
    if self.window is not None:
      visible &= distance < self.window
    return visible | (k_positions < self.prefix)[..., None, :] if self.prefix else visible


def distances(q_positions_BT, k_positions):
  """Returns query minus key position, [B, T, S] or [B, K, T, S] as the keys' positions are [B, S] or [B, K, S]."""
  if k_positions.ndim == 3:
    q_positions_BT = q_positions_BT[:, None]
  return q_positions_BT[..., None] - k_positions[..., None, :]


def layer_rule(config: ModelConfig, layer: int) -> AttentionRule:
  """Returns the static part of a layer's rule."""
  shift = int(config.sink.kind == 'token')
  return AttentionRule(
    operation=config.attention,
    scale=config.head_dim**-0.5,
    softcap=config.attention_softcap,
    window=config.window(layer),
    prefix=config.prefix + shift if config.prefix else 0,
    power=config.attention_power,
    row_sum=config.attention_row_sum,
    offset=config.logit_offset,
    position=config.position,
  )


def attention_weights(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K S H'],
  q_positions: Int[Array, 'B T'],
  k_positions: Int[Array, 'B S'] | Int[Array, 'B K S'],
  rule: AttentionRule,
  mask: Bool[Array, 'B T S'] | None = None,
) -> tuple[Float[Array, 'B K G T S'], Float[Array, 'B K G T'] | None]:
  """Returns the float32 weights of the keys, and of the rule's slot if it has one.

  Args:
    q, k: queries, and keys with heads first; N = K G.
    q_positions, k_positions: where they stand; the batch axes may be 1.
    rule: see AttentionRule.
    mask: further keys to hide, such as other documents'.
  """
  q_BKRH = by_key_head(q, k.shape[1])
  return weigh(dot(q_BKRH, k), q_BKRH, q_positions, k_positions, rule, mask)


def by_key_head(q: Float[Array, 'B T N H'], num_kv_heads: int) -> Float[Array, 'B K R H']:
  """Returns the queries that each key head serves, R = G T of them, so that all products are plain batched ones.

  Einsums over all five axes cost more copies on a CPU.
  """
  B, T, N, H = q.shape
  G = N // num_kv_heads
  return q.reshape(B, T, num_kv_heads, G, H).transpose(0, 2, 3, 1, 4).reshape(B, num_kv_heads, G * T, H)


def dot(q_BKRH, k_BKSH):
  return jnp.einsum('BKRH,BKSH->BKRS', q_BKRH, k_BKSH, preferred_element_type=jnp.float32)


def weigh(
  logits: Float[Array, 'B K R S'],
  q: Float[Array, 'B K R H'],
  q_positions: Int[Array, 'B T'],
  k_positions: Int[Array, 'B S'] | Int[Array, 'B K S'],
  rule: AttentionRule,
  mask: Bool[Array, 'B T S'] | None = None,
) -> tuple[Float[Array, 'B K G T S'], Float[Array, 'B K G T'] | None]:
  """Returns what `attention_weights` does, of products that are already taken."""
  B, K, R, S = logits.shape
  T = q_positions.shape[1]
  G = R // T
  logits_BKGTS = _scaled(logits.reshape(B, K, G, T, S), rule)
  if rule.position in ('alibi', 'relative_t5', 'relative_paper'):
    logits_BKGTS = logits_BKGTS + _by_distance(rule, distances(q_positions, k_positions), K, G)
  visible = rule.visible(q_positions, k_positions)
  visible = visible[:, :, None] if k_positions.ndim == 3 else visible[:, None, None]
  visible = visible if mask is None else visible & mask[:, None, None]
  if rule.has_slot:
    if rule.slot_key is not None:
      slot_BKR = jnp.einsum('BKRH,KH->BKR', q, rule.slot_key.astype(q.dtype), preferred_element_type=jnp.float32)
      slot_BKGT = _scaled(slot_BKR.reshape(B, K, G, T), rule)
    else:
      slot_BKGT = jnp.broadcast_to(rule.slot_logit.astype(jnp.float32).reshape(1, K, G, 1), (B, K, G, T))
    logits_BKGTS = jnp.concatenate([slot_BKGT[..., None], logits_BKGTS], axis=-1)
    visible = jnp.pad(visible, ((0, 0),) * 4 + ((1, 0),), constant_values=True)
  options = {} if rule.power == 1.0 else {'power': rule.power}
  w_BKGTS = OPERATIONS[rule.operation](logits_BKGTS, visible, **options)
  if rule.row_sum != 1.0:
    w_BKGTS = rule.row_sum * w_BKGTS
  return (w_BKGTS[..., 1:], w_BKGTS[..., 0]) if rule.has_slot else (w_BKGTS, None)


def _by_distance(rule: AttentionRule, distance, K: int, G: int):
  """Returns what the position scheme adds, [B, K, G, T, S]; `distance` as `distances` returns it."""
  rows = distance.reshape(-1, *distance.shape[-2:])
  scores = distance_scores(rule.position, rows, K * G, rule.distance_table)
  scores = jnp.broadcast_to(scores, (len(rows), K * G, *rows.shape[1:]))
  if distance.ndim == 3:
    return scores.reshape(-1, K, G, *rows.shape[1:])
  head_K = jnp.arange(K)  # of every head's distances, its own scores
  return scores.reshape(-1, K, K, G, *rows.shape[1:])[:, head_K, head_K]


def _scaled(logits, rule: AttentionRule):
  logits = logits * rule.scale
  if rule.softcap is not None:
    logits = rule.softcap * jnp.tanh(logits / rule.softcap)
  return logits + rule.offset if rule.offset else logits


def attend(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K S H'],
  v: Float[Array, 'B K S H'],
  q_positions: Int[Array, 'B T'],
  k_positions: Int[Array, 'B S'] | Int[Array, 'B K S'],
  rule: AttentionRule,
  mask: Bool[Array, 'B T S'] | None = None,
) -> Float[Array, 'B T N H']:
  """Grouped-query attention over heads-first keys and values; arguments as for `attention_weights`."""
  products = (lambda q: dot(q, k)), (lambda w: jnp.matmul(w.astype(v.dtype), v))
  return attend_by(*products, q, k.shape[1], q_positions, k_positions, rule, mask)


def attend_by(
  score: Callable,
  mix: Callable,
  q: Float[Array, 'B T N H'],
  num_kv_heads: int,
  q_positions: Int[Array, 'B T'],
  k_positions: Int[Array, 'B S'] | Int[Array, 'B K S'],
  rule: AttentionRule,
  mask: Bool[Array, 'B T S'] | None = None,
) -> Float[Array, 'B T N H']:
  """Attention over keys and values that only two functions know.

  Args:
    score: [B, K, R, H] queries -> their float32 products with all keys [B, K, R, S].
    mix: float32 weights [B, K, R, S] -> the weighted sums of all values [B, K, R, H].
    others: as for `attention_weights`.
  """
  B, T, N, H = q.shape
  G = N // num_kv_heads
  q_BKRH = by_key_head(q, num_kv_heads)
  w_BKGTS, slot_BKGT = weigh(score(q_BKRH), q_BKRH, q_positions, k_positions, rule, mask)
  out_BKRH = mix(w_BKGTS.reshape(B, num_kv_heads, G * T, -1)).astype(q.dtype)
  if rule.slot_value is not None:
    slot_BKR1 = slot_BKGT.astype(q.dtype).reshape(B, num_kv_heads, G * T, 1)
    out_BKRH = out_BKRH + slot_BKR1 * rule.slot_value.astype(q.dtype)[None, :, None]
  return out_BKRH.reshape(B, num_kv_heads, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
