"""Speculative decoding as a loop strategy of `decoders.generate`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders.output import Output
from decoders.plain import drafting
from decoders.plain import generate as generate_plain
from decoders.programs import Clock
from decoders.speculative import trees
from decoders.speculative.rounds import Drafter, SpeculativeState, decode
from decoders.state import DecodeState
from decoders.strategies import PlainLoop, Plan
from jaxlm.errors import unknown
from jaxlm.language_model import LanguageModel

COUNTED = ('rounds', 'drafted', 'accepted', 'verified')


class SpeculativeLoop(PlainLoop):
  """Extends rows by rounds of drafting and verifying; see `decoders.strategies.PlainLoop`."""

  def __init__(self, drafter: Drafter, rule: trees.Rule = 'match'):
    if rule not in ('match', 'residual'):
      raise unknown('rule', rule, ('match', 'residual'))
    self.drafter, self.rule = drafter, rule
    self.slack = drafter.buckets[-1][0] + 1
    self.clear()

  def clear(self) -> None:
    self.counts: dict[str, list[int]] = {name: [] for name in COUNTED}  # of each row
    self.drafter_bytes = 0

  def check(self, lm: LanguageModel, longest: int, values: dict) -> None:
    self.drafter.check(lm, longest, self.rule == 'residual' and 'temperature' in values)

  def begin(
    self, clock: Clock, lm: LanguageModel, prompts: Sequence[Sequence[int]], state: DecodeState, plan: Plan
  ) -> SpeculativeState:
    R, M = state.tokens.shape
    if not state.cache.exact:
      raise ValueError(
        'A quantised cache rounds tokens as they grow old, so tokens verified together would see other values than tokens '
        'decoded one by one: use plain decoding, or leave quant out.'
      )
    text = np.zeros((R, plan.slots), np.int32)
    for row, ids, new, n in zip(text, prompts, np.asarray(state.tokens), np.asarray(state.lengths)):
      row[: len(ids)] = ids
      row[len(ids) : len(ids) + n] = new[:n]
    # Each counter needs its own array, because the buffers are donated.
    zeros = lambda: jnp.zeros(R, jnp.int32)
    fields = {name: getattr(state, name) for name in DecodeState.__dataclass_fields__}
    state = SpeculativeState(**fields, text=jnp.asarray(text), memory=None, **{name: zeros() for name in COUNTED})
    memory = self.drafter.begin(clock, lm, prompts, state, plan.chunk)
    self.drafter_bytes = max(self.drafter_bytes, sum(x.nbytes for x in jax.tree.leaves(memory)))
    return state.replace(memory=memory)

  def advance(self, clock: Clock, lm: LanguageModel, state: SpeculativeState, steps: int, eos_E, values):
    return run_rounds(clock, lm, state, steps, eos_E, values, self.drafter, self.rule)

  def finished(self, rows_R: np.ndarray, state: SpeculativeState) -> None:
    for name, counts in self.counts.items():
      counts.extend(np.asarray(getattr(state, name)).tolist())

  def stats(self) -> dict[str, Any]:
    return drafting(*(sum(self.counts[name]) for name in COUNTED)) | {'drafter_bytes': self.drafter_bytes}


def run_rounds(
  clock: Clock,
  lm: LanguageModel,
  state: SpeculativeState,
  most: int,
  eos_E: jax.Array,
  values: dict,
  drafter: Drafter,
  rule: trees.Rule,
) -> tuple[SpeculativeState, jax.Array]:
  """Returns (the state after at most `most` rounds, the rounds taken). `state.memory` must be the drafter's."""
  static = {'config': lm.config, 'drafter': drafter.traced, 'rule': rule}
  return clock.run('decode', decode, lm.params, drafter.weights(), state, jnp.int32(most), eos_E, values, **static)


def generate(
  lm: LanguageModel,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  drafter: Drafter,
  max_new_tokens: int = 64,
  rule: trees.Rule = 'match',
  **options,
) -> Output:
  """Continues each prompt as `decoders.generate` does, in fewer calls of the model.

  Args:
    prompts, max_new_tokens: as for `decoders.generate`.
    drafter: proposes tokens: `PromptLookup`, `DraftModel`, ...
    rule: which proposed tokens are accepted when sampling. match: those that plain decoding chooses with the same seed.
      residual: more of them; the output has the same distribution as plain decoding. Greedy decoding, and drafters that do not
      draw their tokens, always use match.
    options: all other arguments of `decoders.generate`.

  Raises:
    ValueError: as `decoders.generate`; a drafter that does not fit the model.
  """
  loop = SpeculativeLoop(drafter, rule)
  return generate_plain(lm, prompts, max_new_tokens=max_new_tokens, loop=loop, **options)
