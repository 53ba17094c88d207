"""A loop strategy for one request, whose guard chooses how each chunk is decoded: plainly, by prompt lookup, or by a drafter."""

from __future__ import annotations

from collections import Counter
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from decoders.programs import Clock
from decoders.speculative import trees
from decoders.speculative.combined import CombinedDrafter
from decoders.speculative.guard import CHUNK, Account
from decoders.speculative.loop import SpeculativeLoop
from decoders.speculative.modes import Call, DraftRounds, LookupRounds, Mode, OutputText, PlainSteps
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.speculative.rounds import Drafter, SpeculativeState
from jaxlm.language_model import LanguageModel

FIRST_ROUNDS = 2  # Rounds of the first try of drafting, whose cost is not known yet.
# Calls between two decisions of the guard: as many as take LONGEST_CHUNK seconds, so that deciding costs little time, but at most
# MOST_CALLS.
MOST_CALLS, LONGEST_CHUNK = 256, 0.5


class GuardedLoop(SpeculativeLoop):
  """The loop of one request. Subclasses may change the modes to choose from, and act between chunks.

  Args:
    drafter: drafts in the rounds of the mode `draft`.
    account: the guard's measurements, which the requests of a stream share.
    rule: as for `SpeculativeLoop`.
    sampling: whether tokens are sampled; False: greedy.
    lookup: drafts before the drafter, and the drafter only where it finds nothing (None: the drafter drafts alone).
  """

  def __init__(self, drafter: Drafter, account: Account, rule: trees.Rule, sampling: bool, lookup: PromptLookup | None):
    self.account, self.sampling, self.lookup = account, sampling, lookup
    super().__init__(self.after_lookup(drafter), rule)

  def after_lookup(self, drafter: Drafter) -> Drafter:
    """Returns the drafter, combined with prompt lookup if the loop has it."""
    return drafter if self.lookup is None else CombinedDrafter(self.lookup, drafter)

  def clear(self) -> None:
    super().clear()
    self.calls_taken: Counter[str] = Counter()  # by mode

  def begin(self, clock, lm, prompts, state, plan):
    state = super().begin(clock, lm, prompts, state, plan)
    self.text = OutputText(np.array([len(p) for p in prompts]))
    self.account.turn((*state.text.shape, self.sampling, self.lookup is not None))
    return state

  def advance(self, clock: Clock, lm: LanguageModel, state: SpeculativeState, steps: int, eos_E, values):
    call, taken = Call(clock, lm, eos_E, values), 0
    while taken < steps and not bool(jnp.all(state.done)):
      name, started, compiled = self.account.decides(self.modes()), self.now(clock), clock.compile_seconds
      unfinished, lengths_R = np.flatnonzero(~np.asarray(state.done)), np.array(state.lengths)
      most = self.most_calls(name, int(lengths_R[unfinished].max()))
      state, calls, tokens = self.all_modes()[name].advance(call, self.text, state, min(most, steps - taken))
      taken, first = taken + calls, clock.compile_seconds > compiled
      self.account.note(name, self.now(clock) - started, tokens, max(calls, 1), first)
      self.calls_taken[name] += calls
      state = self.after_chunk(call, state, calls, (np.asarray(state.lengths) - lengths_R)[unfinished])
    return state, taken

  def after_chunk(self, call: Call, state: SpeculativeState, calls: int, new_U: np.ndarray) -> SpeculativeState:
    """Returns the state to go on with after a chunk of `calls` calls. `new_U`: new tokens of each row that had not ended."""
    return state

  def all_modes(self) -> dict[str, Mode]:
    """Returns the modes by name, from the safest to the most speculative one."""
    lookup = [] if self.lookup is None else [LookupRounds(self.lookup, self.rule)]
    return {mode.name: mode for mode in (PlainSteps(), *lookup, DraftRounds(self.drafter, self.rule))}

  def modes(self) -> list[str]:
    """Returns the names of the modes that the guard may choose now, in the same order."""
    return list(self.all_modes())

  def most_calls(self, name: str, longest: int) -> int:
    """Returns how many calls of the model to make in this mode until the next decision.

    Args:
      longest: number of tokens generated so far in the longest row that has not ended.
    """
    account = self.account
    if not account.on:
      return MOST_CALLS
    if name == DraftRounds.name and name not in account.call and name not in account.worst:
      return FIRST_ROUNDS
    if name not in account.call or name != account.best(self.modes()):
      return CHUNK
    return min(max(int(LONGEST_CHUNK / account.call[name]), CHUNK), MOST_CALLS)

  def now(self, clock: Clock) -> float:
    """Returns the time in seconds, without the time spent compiling."""
    return time.perf_counter() - clock.compile_seconds

  def stats(self) -> dict[str, Any]:
    pace = {'seconds_per_token': dict(self.account.pace)}
    return super().stats() | {'plain_steps': self.calls_taken[PlainSteps.name]} | pace
