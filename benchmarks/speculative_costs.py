"""Times the parts of a round of speculative decoding, and predicts the speed-up S from them.

S = M / (v(n) + d c)      per round: M new tokens, d drafted tokens, n verified nodes
c     time of a drafting step divided by that of a plain step. Drafts are timed between plain steps, because drafting steps alone
      would find their weights in the processor's caches; in a round only the later steps of a draft do
v(n)  time of verifying n nodes and keeping the accepted ones, divided by that of a plain step. If memory is the limit, v is about 1,
      and with d = (M - 1) / alpha this is the formula of SWIFT's paper
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from decoders import plain
from decoders import state as decode_state
from decoders.programs import Clock
from decoders.speculative import SpeculativeLoop
from decoders.speculative.rounds import Drafter, verify, with_accepted
from decoders.speculative.trees import chain_of
from jaxlm.language_model import LanguageModel

SECONDS = 0.3  # Approximate time of one measurement; long enough that the cost of a call does not matter.


@dataclasses.dataclass(frozen=True)
class Costs:
  plain_seconds: float
  drafts: tuple[int, ...]
  """Numbers of steps in a draft; empty for a drafter without steps."""
  draft: tuple[float, ...]
  """c of a step, for each number in `drafts`."""
  nodes: tuple[int, ...]
  verify: tuple[float, ...]
  """v, for each number in `nodes`."""

  def speedup(self, stats: dict[str, Any]) -> float:
    """Returns S for a run with these statistics; v and c are interpolated between the measured sizes."""
    of_round = {name: stats[name] / stats['rounds'] for name in ('drafted', 'verified')}
    v = np.interp(of_round['verified'], self.nodes, self.verify)
    return float(stats['tokens_per_round'] / (v + of_round['drafted'] * self.c(stats)))

  def c(self, stats: dict[str, Any]) -> float:
    """Returns the cost of a drafting step in a run with as many steps per round."""
    return float(np.interp(stats['drafted'] / stats['rounds'], self.drafts, self.draft)) if self.drafts else 0.0

  def paper_speedup(self, stats: dict[str, Any]) -> float:
    """Returns S by the paper's formula, in which verifying costs as much as a plain step."""
    return float(stats['tokens_per_round'] / (1 + stats['drafted'] / stats['rounds'] * self.c(stats)))


def measure(
  lm: LanguageModel, prompt: Sequence[int], drafter: Drafter, repeats: int, drafts: bool = True, **options
) -> Costs:
  """Times the parts after a prompt, with the cache of these options of `decoders.generate`.

  `drafts`: whether the drafter is a model that takes drafting steps; its threshold should be 0, so that it takes all of them.
  """
  probe = Probe(drafter, repeats, drafts)
  plain.generate(lm, [list(prompt)], eos_id=None, loop=probe, **options)
  return probe.costs


class Probe(SpeculativeLoop):
  """A loop that times the parts on its rows before it decodes them."""

  def __init__(self, drafter: Drafter, repeats: int, drafts: bool):
    super().__init__(drafter)
    self.repeats, self.drafts = repeats, drafts

  def begin(self, clock: Clock, lm: LanguageModel, prompts, state, plan):
    state = super().begin(clock, lm, prompts, state, plan)
    drafter, config = self.drafter, lm.config
    none = jnp.full(1, -1)

    @jax.jit
    def step(params, state, steps):
      return decode_state.decode(params, state, steps, none, {}, config=config)[0]

    @functools.partial(jax.jit, static_argnames='depth')
    def draft(params, state, steps, weights, depth):
      """Takes a draft and a plain step in turn. Each begins with the last token of the other, so that XLA cannot remove one."""
      cut = shortened(drafter, depth)

      def both(_, s):
        tree, memory = cut.propose(params, weights, s, {}, 'match', config)
        s = s.replace(last=tree.chain[:, -1], memory=memory)
        return decode_state.decode(params, s, 1, none, {}, config=config)[0]

      return jax.lax.fori_loop(0, steps, both, state)

    @functools.partial(jax.jit, static_argnames='depth')
    def verified(params, state, steps, depth):
      def one(_, s):
        tree = chain_of(jnp.broadcast_to(s.last[:, None], (len(s.last), depth)), jnp.full(len(s.last), depth))
        kept = verify(params, s, tree, {}, config, drafter, 'match')
        return with_accepted(s, *kept, tree.length, none, drafter).replace(lengths=s.lengths)

      return jax.lax.fori_loop(0, steps, one, state)

    # Only chains are verified, because nodes of other trees cost the same.
    deepest = drafter.buckets[-1][0]
    depths = sorted({0, 1, 2, 4, 6, deepest} & set(range(deepest + 1)))
    # The largest number of steps that leaves room for a whole draft.
    steps = max(state.tokens.shape[1] - 2 - deepest, 2)

    def timed(function, *args):
      """Returns a function that measures the seconds per step, over enough steps to take about SECONDS."""
      run = lambda n: report.seconds(lambda: jax.block_until_ready(function(lm.params, state, jnp.int32(n), *args)))
      run(2)
      n = int(np.clip(SECONDS / (run(2) / 2), 2, steps))
      return lambda: run(n) / n

    runs = {'plain': timed(step), **{d: timed(verified, d) for d in depths}}
    drafts = tuple(sorted({1, 2, deepest})) if self.drafts else ()
    weights = drafter.weights() if drafts else None
    runs |= {f'draft {d}': timed(draft, weights, d) for d in drafts}
    taken = {name: float(np.median(t)) for name, t in report.in_turn(runs, self.repeats).items()}
    of_plain = lambda name: taken[name] / taken['plain']
    c = tuple(max(of_plain(f'draft {d}') - 1, 0.0) / d for d in drafts)
    self.costs = Costs(taken['plain'], drafts, c, tuple(1 + d for d in depths), tuple(map(of_plain, depths)))
    return state


def shortened(drafter: Drafter, depth: int) -> Drafter:
  """Returns a drafter whose chains have at most `depth` tokens."""
  if any(field.name == 'policy' for field in dataclasses.fields(drafter)):
    return dataclasses.replace(drafter, policy=dataclasses.replace(drafter.policy, max_draft=depth))
  return dataclasses.replace(drafter, max_draft=depth)
