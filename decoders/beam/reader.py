"""How a search over items reads a language model: the history once, then prefixes beside its cache, many at a time.

A search asks for nothing else, so that its tests may put another model in the place of a transformer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flax import struct
import jax.numpy as jnp

from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import Branch, FullCache
from jaxlm.config import ModelConfig
from jaxlm.models import functions

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class PromptThenBranch:
  """Reads a prompt and the tokens of a branch beside it in one call: the first tokens are the prompt's, the last `size` the branch's.

  All layers' products are computed over both at once. `branch.cache` is the prompt's cache, still empty.
  """

  branch: Branch
  size: int = struct.field(pytree_node=False)

  @property
  def fresh(self) -> bool:
    return self.branch.cache.fresh

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    """See `jaxlm.caches.protocol.Cache`."""
    prompt, beside = (
      [x[:, part] for x in (q, k, v, positions)] for part in (slice(-self.size), slice(-self.size, None))
    )
    out, cache = self.branch.cache.attend(layer, *prompt, rule)
    more, branch = self.branch.replace(cache=cache).attend(layer, *beside, rule)
    return jnp.concatenate([out, more], axis=1), self.replace(branch=branch)


@dataclasses.dataclass(frozen=True)
class ModelReader:
  """Reads a language model. States are those after the final norm; `total` is the length that each row may reach."""

  config: ModelConfig

  def prompt(
    self, params: Any, tokens: Int[Array, 'B P'], lengths: Int[Array, ' B'], total: Int[Array, ' B']
  ) -> tuple[Float[Array, 'B D'], FullCache]:
    """Returns (the state after each prompt's last token, the cache)."""
    cache = FullCache.create(self.config, *tokens.shape)
    states_BPD, cache = functions.hidden(params, self.config, tokens, None, cache, total)
    return states_BPD[jnp.arange(len(tokens)), lengths - 1], cache

  def branch(self, cache: FullCache, size: int) -> Branch:
    """Returns room for `size` tokens beside each row of a cache."""
    return Branch.create(cache, self.config, cache.keys[0].shape[0], size)

  def read(
    self, params: Any, tokens: Int[Array, 'B T'], positions: Int[Array, 'B T'], total: Int[Array, ' B'], branch: Branch
  ) -> tuple[Float[Array, 'B T D'], Branch]:
    """Returns (the states of tokens, the branch with the tokens)."""
    return functions.hidden(params, self.config, tokens, positions, branch, total)

  def prompt_and_tree(
    self,
    params: Any,
    prompt: Int[Array, 'B P'],
    lengths: Int[Array, ' B'],
    total: Int[Array, ' B'],
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    seen: Bool[Array, 'B T T'],
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B T D'], Branch]:
    """Reads prompts and a tree of tokens behind each in one call; `seen`: which tokens of the tree each of them sees.

    Returns (the state after each prompt's last token, the states of the tree, the branch, whose cache holds the prompts).
    """
    (B, P), T = prompt.shape, tokens.shape[1]
    branch = self.branch(FullCache.create(self.config, B, P), T).replace(seen=seen)
    all_positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(P)[None], (B, P)), positions], axis=1)
    all_tokens, cache = jnp.concatenate([prompt, tokens], axis=1), PromptThenBranch(branch, T)
    states, cache = functions.hidden(params, self.config, all_tokens, all_positions, cache, total)
    return states[jnp.arange(B), lengths - 1], states[:, P:], cache.branch

  def logits(self, params: Any, states: Float[Array, '... D']) -> Float[Array, '... V']:
    """Returns float32 logits."""
    return functions.logits(params, self.config, states)
