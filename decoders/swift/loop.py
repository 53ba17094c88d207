"""SWIFT's loop strategy for one request: the guard chooses how each chunk is decoded, and the search runs between chunks."""

from __future__ import annotations

from collections import Counter
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from decoders.programs import Clock
from decoders.speculative import trees
from decoders.speculative.combined import CombinedDrafter
from decoders.speculative.loop import SpeculativeLoop
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.speculative.rounds import Drafter, SpeculativeState
from decoders.swift import skipping
from decoders.swift.config import SwiftConfig
from decoders.swift.drafter import SkipDrafter
from decoders.swift.guard import CHUNK, Account
from decoders.swift.search import predicted_speedup
from decoders.swift.search_base import SearchBase
from decoders.swift.sets import SkipSet, num_skippable
from decoders.swift.ways import Call, DraftRounds, LookupRounds, OutputText, PlainSteps, Way
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket

if TYPE_CHECKING:
  from decoders.swift.stream import Stream

FIRST_ROUNDS = 2  # Rounds of the first try of drafting, whose cost is not known yet.
# Calls between two decisions of the guard: as many as take LONGEST_CHUNK seconds, so that deciding costs little time, but at most
# MOST_CALLS.
MOST_CALLS, LONGEST_CHUNK = 256, 0.5


@dataclasses.dataclass
class Shared:
  """State that the requests of a stream share. The loop of each request reads and changes it."""

  swift: SwiftConfig
  search: SearchBase
  account: Account
  saved_score: float | None
  """Matchness of the set that was read from a file; None if there was none, or if it is not known."""
  generated: int = 0
  """Number of tokens generated per row over all requests. The search uses it to see which windows share tokens."""

  @property
  def score(self) -> float | None:
    """Matchness of the set that drafts skip; None if it is not known."""
    return self.search.best_score or self.saved_score


class SwiftLoop(SpeculativeLoop):
  """The loop of one request.

  Args:
    stream: the stream of the request. The loop uses its `shared` state, and calls its `ended` when a search ends.
    rule: as for `SpeculativeLoop`.
    sampling: whether tokens are sampled; False: greedy.
    lookup: drafts before SWIFT, and SWIFT only where it finds nothing (None: SWIFT drafts alone).
  """

  def __init__(self, stream: Stream, rule: trees.Rule, sampling: bool, lookup: PromptLookup | None):
    self.shared, self.search_ended = stream.shared, stream.ended
    self.sampling, self.lookup = sampling, lookup
    self.swift, self.search, self.account = self.shared.swift, self.shared.search, self.shared.account
    self.window = self.swift.context_window
    super().__init__(self.drafter_with(self.search.best), rule)
    self.searched_at = 0  # `generated` at the last step of the search

  def clear(self) -> None:
    super().clear()
    self.search_seconds, self.searched_sets, self.calls_since_search = 0.0, 0, 0
    self.calls_taken: Counter[str] = Counter()  # by way
    self.first_search_seconds = math.inf  # expected time of the first step of the search

  def drafter_with(self, skip_set: SkipSet) -> Drafter:
    """Returns the drafter that skips this set, combined with prompt lookup if the loop has it."""
    c = self.swift
    found = not self.search.active and c.static_when_found
    how = 'static' if found else c.draft
    # If the set is data, all sets share one program, so drafters of different sets must be equal.
    start = skip_set if how == 'static' else SkipSet()
    drafter = SkipDrafter(
      start, how, c.max_draft, c.threshold, c.adapt_threshold, c.width_bounds, c.widths(not self.sampling)
    )
    return drafter if self.lookup is None else CombinedDrafter(self.lookup, drafter)

  def begin(self, clock, lm, prompts, state, plan):
    state = super().begin(clock, lm, prompts, state, plan)
    prompt_lengths = np.array([len(p) for p in prompts])
    self.text = OutputText(prompt_lengths)
    # A step of the search reads this many tokens at once. Its time is estimated from that of the prefill.
    tokens = (self.swift.num_candidates + 1) * self.window
    seconds = clock.seconds.get('prefill', 0.0) * tokens / bucket(int(prompt_lengths.max()))
    self.first_search_seconds = min(self.first_search_seconds, seconds)
    self.account.turn((*state.text.shape, self.sampling, self.lookup is not None))
    return self.with_best_set(state)

  def with_best_set(self, state: SpeculativeState) -> SpeculativeState:
    """Returns the state with the best set in its drafter's memory."""
    keep, memory = jnp.asarray(self.search.best.keep(self.search.num_layers)), state.memory
    if isinstance(self.drafter, CombinedDrafter):
      return state.replace(memory=(memory[0], memory[1].replace(keep=keep), memory[2]))
    return state.replace(memory=memory.replace(keep=keep))

  def advance(self, clock: Clock, lm: LanguageModel, state: SpeculativeState, steps: int, eos_E, values):
    call, taken = Call(clock, lm, eos_E, values), 0
    while taken < steps and not bool(jnp.all(state.done)):
      name, started, compiled = self.account.decides(self.ways()), self.now(clock), clock.compile_seconds
      unfinished, lengths_R = np.flatnonzero(~np.asarray(state.done)), np.array(state.lengths)
      most = self.most_calls(name, self.window + 2 - int(lengths_R[unfinished].max()))
      state, calls, tokens = self.all_ways()[name].advance(call, self.text, state, min(most, steps - taken))
      taken, first = taken + calls, clock.compile_seconds > compiled
      self.account.note(name, self.now(clock) - started, tokens, max(calls, 1), first)
      self.calls_taken[name] += calls
      self.calls_since_search += calls
      self.shared.generated += round((np.asarray(state.lengths) - lengths_R)[unfinished].mean())
      search_is_due = self.search.active and self.calls_since_search >= self.swift.opt_interval
      if search_is_due and self.account.affords_search(self.first_search_seconds):
        state, self.calls_since_search = self.search_step(call, state), 0
    return state, taken

  def all_ways(self) -> dict[str, Way]:
    """Returns the ways by name, from the safest to the most speculative one. Drafting skips the best set so far."""
    lookup = [] if self.lookup is None else [LookupRounds(self.lookup, self.rule)]
    return {way.name: way for way in (PlainSteps(), *lookup, DraftRounds(self.drafter, self.rule))}

  def ways(self) -> list[str]:
    """Returns the names of the ways that the guard may choose now, in the same order."""
    *surer, draft = self.all_ways()
    account, search = self.account, self.search
    # A set is tried only if the expected acceptance of a drafted token exceeds its cost. A given set has no score, so it is tried.
    untried = draft not in account.call and account.best([*surer, draft]) != draft
    known = self.shared.score is not None or search.active
    # If leaves are verified beside the chain, a token that the draft ranks second or lower may be accepted too.
    likely = max(self.shared.score or 0.0, search.best_nearness if self.drafter.most_beside else 0.0)
    hopeless = account.on and untried and known and likely <= search.cost(search.best)
    return surer if hopeless else [*surer, draft]

  def most_calls(self, name: str, missing: int) -> int:
    """Returns how many calls of the model to make in this way until the next decision.

    Args:
      missing: number of tokens still to be generated before sets can be scored.
    """
    searching, account = self.search.active, self.account
    if not account.on:
      return self.swift.opt_interval if searching else MOST_CALLS
    if name == DraftRounds.name and name not in account.call and name not in account.worst:
      return FIRST_ROUNDS
    if name not in account.call or name != account.best(self.ways()):
      return CHUNK
    most = MOST_CALLS
    if searching and account.affords_search(self.first_search_seconds):
      most = max(missing, CHUNK)  # Longer chunks might end a short request before any step of the search.
    return min(max(int(LONGEST_CHUNK / account.call[name]), CHUNK), most)

  def now(self, clock: Clock) -> float:
    """Returns the time in seconds, without the time spent compiling."""
    return time.perf_counter() - clock.compile_seconds

  def search_step(self, call: Call, state: SpeculativeState) -> SpeculativeState:
    """Scores some sets on the tokens just generated, if there are enough of them; drafting skips the best set from then on."""
    search, window = self.search, self.window
    lengths_R, last_R = np.asarray(state.lengths), np.asarray(state.position)
    valid_R = ~np.asarray(state.done) & (lengths_R > window + 1)
    if not valid_R.any() or self.shared.generated == self.searched_at:
      return state
    started, best_before, state = self.now(call.clock), search.best, self.text.complete(call.clock, state)
    sets = search.propose(self.shared.generated)
    scored = [*sets, search.best] if search.scores_incumbent else sets
    keep = jnp.asarray(np.stack([s.keep(search.num_layers) for s in scored]))
    first_R = np.maximum(last_R - lengths_R + 1 if search.window == 'first' else last_R - window, 0)
    matchness, nearness = call.clock.run(
      'search', skipping.scores, call.lm.params, keep, state.text, jnp.asarray(first_R), jnp.asarray(valid_R),
      state.total, state.cache, config=call.lm.config, window=window,
    )  # fmt: skip
    matchness, nearness = np.asarray(matchness).tolist(), np.asarray(nearness).tolist()
    if search.scores_incumbent:
      search.observe(sets, matchness[:-1], matchness[-1], nearness if self.swift.compare == 'nearness' else None)
    else:
      search.observe(sets, matchness)
    self.searched_at, self.searched_sets = self.shared.generated, self.searched_sets + len(sets)
    if not search.active:
      self.search_ended()
    if search.best != best_before or not search.active:
      self.drafter = self.drafter_with(search.best)
    if search.best != best_before:
      self.account.changed(DraftRounds.name)
      state = self.with_best_set(state)
    seconds = self.now(call.clock) - started
    self.account.searched(seconds)
    self.search_seconds += seconds
    return state

  def stats(self) -> dict[str, Any]:
    best, cost = self.search.best, self.search.cost(self.search.best)
    score = float('nan') if self.shared.score is None else self.shared.score
    return super().stats() | {
      'skipped': {'attention': best.attention, 'mlp': best.mlp},
      'skip_ratio': len(best) / num_skippable(self.search.num_layers),
      'draft_cost': cost, 'matchness': score,
      'predicted_speedup': float(predicted_speedup(score, cost, self.swift.max_draft)),
      'search_seconds': self.search_seconds, 'searched_sets': self.searched_sets, 'search_ended': self.search.stopped,
      'plain_steps': self.calls_taken[PlainSteps.name], 'seconds_per_token': dict(self.account.pace),
    }  # fmt: skip
