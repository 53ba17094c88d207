"""SWIFT's drafter: the model itself with some of its sub-layers skipped (https://arxiv.org/abs/2410.06916).

The probability of each drafted token decides how many candidates are verified beside it, and whether drafting continues.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.speculative.draft_loop import DraftPolicy, adapted_threshold, draft
from decoders.speculative.rounds import Drafter, SpeculativeState
from decoders.speculative.trees import Rule, Tree
from decoders.swift import skipping
from decoders.swift.sets import SkipSet
from jaxlm.caches.branch import Branch
from jaxlm.config import ModelConfig

DEPTHS = (1, 4, 10)  # Chain lengths below `max_draft` for which a smaller verifying program is compiled.


@struct.dataclass
class Memory:
  """State of the drafter between rounds."""

  keep: jax.Array  # [2, L] bool, sub-layers that run
  threshold: jax.Array  # [R] float32
  smoothed: jax.Array  # [R] float32, the smoothed acceptance rate


@dataclasses.dataclass(frozen=True)
class SkipDrafter(Drafter):
  """SWIFT's drafter; see `decoders.speculative.rounds.Drafter`, and `SwiftConfig` for the fields."""

  start: SkipSet
  """The set to skip at first. Unless `how` is static, the memory's `keep` decides what is skipped later."""
  how: skipping.How = 'cond'
  max_draft: int = 25
  threshold: float = 0.8
  adapt: bool = False
  width_bounds: tuple[float, ...] = (0.95, 0.8, 0.5)
  widths: tuple[int, ...] = (3, 5, 8, 10)

  @property
  def policy(self) -> DraftPolicy:
    return DraftPolicy(self.max_draft, self.threshold, self.adapt, self.width_bounds, self.widths)

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    return self.policy.sizes([*(depth for depth in DEPTHS if depth < self.max_draft), self.max_draft])

  @property
  def most_beside(self) -> int:
    return self.policy.most_beside

  def begin(self, clock, lm, prompts, state, chunk=None) -> Memory:
    fill = lambda value: jnp.full(len(prompts), value, jnp.float32)
    return Memory(jnp.asarray(self.start.keep(lm.config.num_layers)), fill(self.threshold), fill(1.0))

  def propose(
    self,
    params: Any,
    draft_params: Any,
    state: SpeculativeState,
    values: dict,
    rule: Rule,
    config: ModelConfig,
    idle_R=None,
  ) -> tuple[Tree, Memory]:
    memory, R, D = state.memory, len(state.last), self.max_draft
    keep = self.start.keep(config.num_layers) if self.how == 'static' else memory.keep
    beside = Branch.create(state.cache, config, R, D)
    # The loop carries only the keys and values of drafted tokens. The cache is only read, and carrying it might copy it.
    carried = lambda branch: branch.replace(cache=None, seen=None)

    def step(tokens_R1, positions_R1, drafted):
      seen_R1D = jnp.broadcast_to(jnp.arange(D)[None, None] <= drafted.at, (R, 1, D))
      branch = drafted.replace(cache=state.cache, seen=seen_R1D)
      hidden_R1D, branch = skipping.hidden(params, tokens_R1, positions_R1, branch, state.total, keep, config, self.how)
      return skipping.logits(params, hidden_R1D[:, 0], config), carried(branch.replace(at=drafted.at + 1))

    tree, _ = draft(
      step, carried(beside), state, values, rule, self.policy, config.vocab_size, threshold=memory.threshold, idle=idle_R
    )  # fmt: skip
    return tree, memory

  def learn(self, memory: Memory, drafted_R, accepted_R) -> Memory:
    if not self.adapt:
      return memory
    threshold_R, smoothed_R = adapted_threshold(
      memory.threshold, memory.smoothed, drafted_R, accepted_R, self.max_draft
    )
    return memory.replace(threshold=threshold_R, smoothed=smoothed_R)
