"""Grouped-query attention under an `AttentionRule`, over keys and values with the head axis before the slot axis.

  o_t = sum_s w_ts v_s

An operation (`jaxlm.attention.operations`) turns logits into weights; a position scheme may first add a term to the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxlm.attention.distance import distance_scores
from jaxlm.attention.dropout import dropped
from jaxlm.attention.operations import OPERATIONS
from jaxlm.attention.rule import AttentionRule, distances

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


def attention_weights(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B K S H'],
  q_positions: Int[Array, 'B T'],
  k_positions: Int[Array, 'B S'] | Int[Array, 'B K S'],
  rule: AttentionRule,
  mask: Bool[Array, 'B T S'] | Bool[Array, 'B K T S'] | None = None,
) -> tuple[Float[Array, 'B K G T S'], Float[Array, 'B K G T'] | None]:
  """Returns the float32 weights of the keys, and of the rule's slot if it has one.

  Args:
    q, k: queries, and keys with heads first; N = K G.
    q_positions, k_positions: positions of queries and keys; the batch axes may be 1.
    rule: see AttentionRule.
    mask: true for keys that a query may see, in addition to the rule (for example the keys of the query's document); all
      axes but the last may be 1.
  """
  q_BKRH = by_key_head(q, k.shape[1])
  return weigh(dot(q_BKRH, k), q_BKRH, q_positions, k_positions, rule, mask)


def by_key_head(q: Float[Array, 'B T N H'], num_kv_heads: int) -> Float[Array, 'B K R H']:
  """Returns the R = G T queries of each key head, so that all products are batched matrix products.

  Einsums over five axes would need more copies on a CPU.
  """
  B, T, N, H = q.shape
  G = N // num_kv_heads
  return q.reshape(B, T, num_kv_heads, G, H).transpose(0, 2, 3, 1, 4).reshape(B, num_kv_heads, G * T, H)


def heads_first(x_BTKH):
  return x_BTKH.transpose(0, 2, 1, 3)


def dot(q_BKRH, k_BKSH):
  return jnp.einsum('BKRH,BKSH->BKRS', q_BKRH, k_BKSH, preferred_element_type=jnp.float32)


def weigh(
  logits: Float[Array, 'B K R S'],
  q: Float[Array, 'B K R H'],
  q_positions: Int[Array, 'B T'],
  k_positions: Int[Array, 'B S'] | Int[Array, 'B K S'],
  rule: AttentionRule,
  mask: Bool[Array, 'B T S'] | Bool[Array, 'B K T S'] | None = None,
) -> tuple[Float[Array, 'B K G T S'], Float[Array, 'B K G T'] | None]:
  """Returns the result of `attention_weights`, given the products q . k as `logits`."""
  B, K, R, S = logits.shape
  T = q_positions.shape[1]
  G = R // T
  logits_BKGTS = _scaled(logits.reshape(B, K, G, T, S), rule)
  if rule.position in ('alibi', 'relative_t5', 'relative_paper'):
    logits_BKGTS = logits_BKGTS + _by_distance(rule, distances(q_positions, k_positions), K, G)
  visible = rule.visible(q_positions, k_positions)
  visible = visible[:, :, None] if k_positions.ndim == 3 else visible[:, None, None]
  if mask is not None:
    visible &= mask[:, :, None] if mask.ndim == 4 else mask[:, None, None]
  if rule.has_slot:
    logits_BKGTS = jnp.concatenate([slot_logits(q, T, rule)[..., None], logits_BKGTS], axis=-1)
    visible = jnp.pad(visible, ((0, 0),) * 4 + ((1, 0),), constant_values=True)
  options = {} if rule.power == 1.0 else {'power': rule.power}
  w_BKGTS = OPERATIONS[rule.operation](logits_BKGTS, visible, **options)
  if rule.row_sum != 1.0:
    w_BKGTS = rule.row_sum * w_BKGTS
  if rule.dropout:
    w_BKGTS = dropped(w_BKGTS, rule.dropout, rule.dropout_key)
  return (w_BKGTS[..., 1:], w_BKGTS[..., 0]) if rule.has_slot else (w_BKGTS, None)


def slot_logits(q: Float[Array, 'B K R H'], T: int, rule: AttentionRule) -> Float[Array, 'B K G T']:
  """Returns the float32 logits of the rule's slot, for the queries of `by_key_head`; R = G T."""
  B, K, R, _ = q.shape
  if rule.slot_key is None:
    return jnp.broadcast_to(rule.slot_logit.astype(jnp.float32).reshape(1, K, R // T, 1), (B, K, R // T, T))
  slot_BKR = jnp.einsum('BKRH,KH->BKR', q, rule.slot_key.astype(q.dtype), preferred_element_type=jnp.float32)
  return _scaled(slot_BKR.reshape(B, K, R // T, T), rule)


def _by_distance(rule: AttentionRule, distance, K: int, G: int):
  """Returns the position scheme's term of the logits, [B, K, G, T, S]; `distance` comes from `distances`."""
  rows = distance.reshape(-1, *distance.shape[-2:])
  scores = distance_scores(rule.position, rows, K * G, rule.distance_table, rule.causal)
  scores = jnp.broadcast_to(scores, (len(rows), K * G, *rows.shape[1:]))
  if distance.ndim == 3:
    return scores.reshape(-1, K, G, *rows.shape[1:])
  head_K = jnp.arange(K)  # Distances differ by key head; each head takes the scores of its own distances.
  return scores.reshape(-1, K, K, G, *rows.shape[1:])[:, head_K, head_K]


def _scaled(logits, rule: AttentionRule):
  """Returns products q . k scaled, capped and shifted, as the rule says."""
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
  mask: Bool[Array, 'B T S'] | Bool[Array, 'B K T S'] | None = None,
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
  mask: Bool[Array, 'B T S'] | Bool[Array, 'B K T S'] | None = None,
) -> Float[Array, 'B T N H']:
  """Attention over keys and values that are given by two functions, for example because they are quantised.

  Args:
    score: maps queries [B, K, R, H] to their float32 products with all keys [B, K, R, S].
    mix: maps float32 weights [B, K, R, S] to the weighted sums of all values [B, K, R, H].
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
