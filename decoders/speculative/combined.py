"""Two drafters: the second one drafts for rows in which the first one finds nothing."""

import dataclasses

import jax.numpy as jnp

from decoders.speculative.draft_model import DraftModel
from decoders.speculative.rounds import Drafter
from decoders.speculative.trees import NOWHERE, Tree


@dataclasses.dataclass(frozen=True)
class CombinedDrafter(Drafter):
  """Drafts with `first`, and with `second` for rows in which `first` finds nothing.

  Raises:
    ValueError: `second` is a draft model, whose cache would miss the tokens that `first` added, or is a CombinedDrafter itself;
      when the drafter is used: the rule needs drawn tokens.
  """

  first: Drafter
  second: Drafter

  def __post_init__(self):
    if isinstance(self.second, DraftModel):
      raise ValueError('A draft model must read every token, so it cannot be the second of two drafters.')
    if isinstance(self.second, CombinedDrafter):
      raise ValueError(
        'The second of two drafters cannot be two drafters itself: use CombinedDrafter(CombinedDrafter(...), ...).'
      )

  @property
  def most_beside(self) -> int:
    return max(self.first.most_beside, self.second.most_beside)

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    depth = max(self.first.buckets[-1][0], self.second.buckets[-1][0])
    most = max(self.first.buckets[-1][1], self.second.buckets[-1][1])
    smaller = {b for b in (*self.first.buckets, *self.second.buckets) if b[0] < depth or b[1] < most}
    return (*sorted(smaller), (depth, most))

  @property
  def traced(self) -> 'CombinedDrafter':
    return CombinedDrafter(self.first.traced, self.second.traced)

  def check(self, lm, longest, drawn) -> None:
    if drawn:
      raise ValueError("Two drafters do not record the probabilities that rule='residual' needs: use rule='match'.")
    for drafter in (self.first, self.second):
      drafter.check(lm, longest, drawn)

  def weights(self) -> tuple:
    return self.first.weights(), self.second.weights()

  def begin(self, clock, lm, prompts, state, chunk=None):
    memories = [d.begin(clock, lm, prompts, state, chunk) for d in (self.first, self.second)]
    return *memories, jnp.zeros(len(prompts), bool)

  def propose(self, params, draft_params, state, values, rule, config, idle_R=None) -> tuple[Tree, tuple]:
    one, first = self.first.propose(
      params, draft_params[0], state.replace(memory=state.memory[0]), values, rule, config
    )
    found_R = one.length > 0
    rest = state.replace(memory=state.memory[1])
    two, second = self.second.propose(params, draft_params[1], rest, values, rule, config, idle_R=found_R)
    depth, most = self.buckets[-1]
    wide = lambda x, n, fill: jnp.pad(x, ((0, 0), (0, n - x.shape[1])), constant_values=fill)
    pick = lambda a, b, n, fill: jnp.where(found_R[:, None], wide(a, n, fill), wide(b, n, fill))
    tree = Tree(
      chain=pick(one.chain, two.chain, depth, 0),
      length=jnp.where(found_R, one.length, two.length),
      leaves=pick(one.leaves, two.leaves, most, 0),
      parents=pick(one.parents, two.parents, most, NOWHERE),
    )
    return tree, (first, second, found_R)

  def learn(self, memory, drafted_R, accepted_R):
    first, second, found_R = memory
    first = self.first.learn(first, jnp.where(found_R, drafted_R, 0), accepted_R)
    return first, self.second.learn(second, jnp.where(found_R, 0, drafted_R), accepted_R), found_R


Together = CombinedDrafter  # The former name, which stays valid.
