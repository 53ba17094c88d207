"""What the parts of a round of speculative decoding take, each alone, and the speed-up that follows from them.

S = M / (v(n) + d c)      M tokens a round, d drafted tokens a round, n nodes verified a round
c     time of a drafting step, in units of a plain step
v(n)  time of verifying n nodes and keeping the accepted ones, in the same units; where memory is the bound v is about 1, and
      with d = (M - 1) / alpha this is the formula of SWIFT's paper
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
from decoders.programs import Clock
from decoders.rounds import Drafter, added, verify
from decoders.speculative import SpeculativeLoop
from decoders.trees import chain_of
from jaxlm.language_model import LanguageModel

STEPS = 16  # In one timing.


@dataclasses.dataclass(frozen=True)
class Costs:
  plain_seconds: float
  draft: float
  """c; 0 for a drafter that takes no steps."""
  nodes: tuple[int, ...]
  verify: tuple[float, ...]
  """v of each number of nodes."""

  def speedup(self, stats: dict[str, Any]) -> float:
    """Returns S for a run with these statistics; sizes of trees in between are interpolated."""
    of_round = {name: stats[name] / stats['rounds'] for name in ('drafted', 'verified')}
    v = np.interp(of_round['verified'], self.nodes, self.verify)
    return float(stats['tokens_per_round'] / (v + of_round['drafted'] * self.draft))

  def paper_speedup(self, stats: dict[str, Any]) -> float:
    """Returns S by the paper's formula, in which verifying costs what a plain step does."""
    return float(stats['tokens_per_round'] / (1 + stats['drafted'] / stats['rounds'] * self.draft))


def measure(
  lm: LanguageModel, prompt: Sequence[int], drafter: Drafter, new_tokens: int, repeats: int, drafts: bool = True
) -> Costs:
  """Times the parts after a prompt, with the cache that `new_tokens` more need. `drafts`: the drafter takes steps, all of them if its threshold is 0."""
  probe = Probe(drafter, repeats, drafts)
  plain.generate(lm, [list(prompt)], max_new_tokens=new_tokens, eos_id=None, loop=probe)
  return probe.costs


class Probe(SpeculativeLoop):
  """Times the parts on the rows that it is given, and then goes on with them."""

  def __init__(self, drafter: Drafter, repeats: int, drafts: bool):
    super().__init__(drafter)
    self.repeats, self.drafts = repeats, drafts

  def begin(self, clock: Clock, lm: LanguageModel, prompts, state):
    state = super().begin(clock, lm, prompts, state)
    drafter, config = self.drafter, lm.config
    none = jnp.full(1, -1)

    @jax.jit
    def step(params, state):
      return plain.decode(params, state, jnp.int32(STEPS), none, {}, config=config)[0]

    @jax.jit
    def draft(params, state):
      # Each draft begins with the last token of the one before, so that none can be left out.
      again = lambda _, s: s.replace(last=drafter.propose(params, (), s, {}, 'match', config)[0].chain[:, -1])
      return jax.lax.fori_loop(0, STEPS, again, state)

    @functools.partial(jax.jit, static_argnames='depth')
    def verified(params, state, depth):
      def one(_, s):
        tree = chain_of(jnp.broadcast_to(s.last[:, None], (len(s.last), depth)), jnp.full(len(s.last), depth))
        kept = verify(params, s, tree, {}, config, drafter, 'match')
        return added(s, *kept, tree.length, none, drafter).replace(lengths=s.lengths)

      return jax.lax.fori_loop(0, STEPS, one, state)

    # Only trees that are chains: their nodes cost what others do.
    deepest = drafter.buckets[-1][0]
    depths = sorted({0, 1, 2, 4, 6, deepest} & set(range(deepest + 1)))
    done = lambda function, *args: jax.block_until_ready(function(lm.params, state, *args))
    runs = {'plain': lambda: report.seconds(lambda: done(step))}
    runs |= {d: lambda d=d: report.seconds(lambda: done(verified, d)) for d in depths}
    if self.drafts:
      runs['draft'] = lambda: report.seconds(lambda: done(draft))
    taken = {name: float(np.median(t)) / STEPS for name, t in report.in_turn(runs, self.repeats).items()}
    c = taken['draft'] / drafter.max_draft / taken['plain'] if self.drafts else 0.0
    sizes = tuple(1 + d for d in depths)
    self.costs = Costs(taken['plain'], c, sizes, tuple(taken[d] / taken['plain'] for d in depths))
    return state
