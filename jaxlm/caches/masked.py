"""A cache for training on token trees: it stores nothing, and a mask says which tokens each token sees."""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.attention.attend import attend
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.rows import heads_first


@struct.dataclass
class Masked:
  """Each token sees those that `mask` and the rule at the tokens' positions allow. Tokens may share a position, as in a tree."""

  mask: jax.Array  # [B, T, T] bool: whether the token of the second axis sees that of the third

  @property
  def fresh(self) -> bool:
    return True

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    del layer
    before = q.shape[1] - self.mask.shape[1]  # 1 with a sink token, which every token sees.
    mask = jnp.pad(self.mask, ((0, 0), (before, 0), (before, 0)), constant_values=True)
    return attend(q, heads_first(k), heads_first(v), positions, positions, rule, mask), self
