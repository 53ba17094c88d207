"""Measures how lazy each layer is: the attention of the latest queries to the first and to the most recent tokens.

  r_l = mean over the last m queries i and all heads of  sum_{j in Initial or Recent(i)} w^l_ij

(https://arxiv.org/abs/2410.13846). `Scored` measures while it attends; it computes [m, S] weights per layer, never [T, T].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention.attend import attention_weights
from jaxlm.attention.operations import EPS
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.full import FullCache
from jaxlm.caches.rows import heads_first

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

# Operations whose weights can be negative, so that a share of their sum has no meaning.
UNSCORED = ('identity', 'identity_norm', 'mlp', 'mlp_norm')


def lazy_ratio(
  q: Float[Array, 'B M N H'],
  k: Float[Array, 'B K S H'],
  q_positions: Int[Array, 'B M'],
  k_positions: Int[Array, 'B S'],
  rule: AttentionRule,
  *,
  initial: int,
  recent: int,
  include_self: bool = True,
  valid: Bool[Array, 'B M'] | None = None,
) -> Float[Array, ' B']:
  """Returns the share of attention on the first `initial` and each query's last `recent` keys, float32 in [0, 1].

  Recent keys include the query's own key if `include_self`, else they end with the key before it. Weights that do not sum to
  1 (sigmoid) are divided by their sum. A sink slot is never evicted, so its weight counts towards the share. The result is a
  mean over the queries in `valid` (None: all) and over query heads, as in the paper's code.
  """
  weights_BKGMS, slot_BKGM = attention_weights(q, k, q_positions, k_positions, rule)
  distance_BMS = q_positions[:, :, None] - k_positions[:, None, :]
  first = 0 if include_self else 1
  kept_BMS = (k_positions < initial)[:, None, :] | ((distance_BMS >= first) & (distance_BMS < recent + first))
  kept_BKGM = jnp.where(kept_BMS[:, None, None], weights_BKGMS, 0.0).sum(axis=-1)
  total_BKGM = weights_BKGMS.sum(axis=-1)
  if slot_BKGM is not None:
    kept_BKGM, total_BKGM = kept_BKGM + slot_BKGM, total_BKGM + slot_BKGM
  share_BM = jnp.minimum(kept_BKGM / jnp.maximum(total_BKGM, EPS), 1.0).mean(axis=(1, 2))
  if valid is None:
    return share_BM.mean(axis=1)
  return jnp.where(valid, share_BM, 0.0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)


@struct.dataclass
class Scored:
  """Wraps a full cache and measures the lazy ratio of each layer, over each row's last `queries` queries before `ends`.

  The queries may arrive in several calls; each call adds its share to the ratio.
  """

  cache: Any  # caches.FullCache, or one that wraps it
  ends: jax.Array  # [B] int32, the slot after the last query that is scored
  ratios: jax.Array  # [B, L] float32, zeros at first
  initial: int = struct.field(pytree_node=False)
  recent: int = struct.field(pytree_node=False)
  queries: int = struct.field(pytree_node=False, default=1)
  include_self: bool = struct.field(pytree_node=False, default=True)

  @property
  def fresh(self) -> bool:
    return self.cache.fresh

  @property
  def nbytes(self) -> int:
    return self.cache.nbytes

  @property
  def whole(self) -> FullCache:
    return self.cache.whole

  @property
  def votes(self) -> tuple[jax.Array | None, ...]:
    """Votes per layer of the wrapped cache; None if it counts none."""
    return self.cache.votes

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    empty, T = self.cache.whole.empty[layer], q.shape[1]
    out, cache = self.cache.attend(layer, q, k, v, positions, rule)
    # Indices are slots. Positions equal slots, except in an empty cache, where every row starts at slot 0.
    start_B1 = jnp.zeros_like(positions[:, :1]) if empty else positions[:, :1]
    slot_BM = self.ends[:, None] - self.queries + jnp.arange(self.queries)[None]
    index_BM = slot_BM - start_B1
    valid_BM = (index_BM >= 0) & (index_BM < T) & (slot_BM >= 0)
    queries_BMNH = jnp.take_along_axis(q, jnp.clip(index_BM, 0, T - 1)[:, :, None, None], axis=1)
    keys = heads_first(k).astype(cache.whole.keys[layer].dtype) if empty else cache.whole.keys[layer]
    ratio_B = lazy_ratio(
      queries_BMNH,
      keys,
      slot_BM,
      jnp.arange(keys.shape[2])[None],
      rule,
      initial=self.initial,
      recent=self.recent,
      include_self=self.include_self,
      valid=valid_BM,
    )
    share_B = valid_BM.sum(axis=1) / jnp.maximum((slot_BM >= 0).sum(axis=1), 1)
    return out, self.replace(
      cache=cache, ratios=self.ratios.at[:, layer].add((ratio_B * share_B).astype(self.ratios.dtype))
    )
