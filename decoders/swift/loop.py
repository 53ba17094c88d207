"""SWIFT's loop strategy for one request: the guard chooses how each chunk is decoded, and the search runs between chunks."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from decoders.speculative import trees
from decoders.speculative.combined import CombinedDrafter
from decoders.speculative.guard import CHUNK, Account
from decoders.speculative.guarded import GuardedLoop
from decoders.speculative.modes import Call, DraftRounds
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.speculative.rounds import SpeculativeState
from decoders.swift import skipping
from decoders.swift.config import SwiftConfig
from decoders.swift.drafter import SkipDrafter
from decoders.swift.search import predicted_speedup
from decoders.swift.search_base import SearchBase
from decoders.swift.sets import SkipSet, num_skippable
from jaxlm.lengths import bucket

if TYPE_CHECKING:
  from decoders.swift.stream import Stream


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


class SwiftLoop(GuardedLoop):
  """The loop of one request.

  Args:
    stream: the stream of the request. The loop uses its `shared` state, and calls its `ended` when a search ends.
    rule: as for `SpeculativeLoop`.
    sampling: whether tokens are sampled; False: greedy.
    lookup: drafts before SWIFT, and SWIFT only where it finds nothing (None: SWIFT drafts alone).
  """

  def __init__(self, stream: Stream, rule: trees.Rule, sampling: bool, lookup: PromptLookup | None):
    self.shared, self.search_ended = stream.shared, stream.ended
    self.swift, self.search = self.shared.swift, self.shared.search
    self.window = self.swift.context_window
    drafter = self.skip_drafter(self.search.best, sampling)
    super().__init__(drafter, self.shared.account, rule, sampling, lookup)
    self.searched_at = 0  # `generated` at the last step of the search

  def clear(self) -> None:
    super().clear()
    self.search_seconds, self.searched_sets, self.calls_since_search = 0.0, 0, 0
    self.first_search_seconds = math.inf  # expected time of the first step of the search

  def skip_drafter(self, skip_set: SkipSet, sampling: bool) -> SkipDrafter:
    """Returns the drafter that skips this set."""
    c = self.swift
    found = not self.search.active and c.static_when_found
    how = 'static' if found else c.draft
    # If the set is data, all sets share one program, so drafters of different sets must be equal.
    start = skip_set if how == 'static' else SkipSet()
    return SkipDrafter(start, how, c.max_draft, c.threshold, c.adapt_threshold, c.width_bounds, c.widths(not sampling))

  def begin(self, clock, lm, prompts, state, plan):
    state = super().begin(clock, lm, prompts, state, plan)
    # A step of the search reads this many tokens at once. Its time is estimated from that of the prefill.
    tokens = (self.swift.num_candidates + 1) * self.window
    seconds = clock.seconds.get('prefill', 0.0) * tokens / bucket(max(map(len, prompts)))
    self.first_search_seconds = min(self.first_search_seconds, seconds)
    return self.with_best_set(state)

  def with_best_set(self, state: SpeculativeState) -> SpeculativeState:
    """Returns the state with the best set in its drafter's memory."""
    keep, memory = jnp.asarray(self.search.best.keep(self.search.num_layers)), state.memory
    if isinstance(self.drafter, CombinedDrafter):
      return state.replace(memory=(memory[0], memory[1].replace(keep=keep), memory[2]))
    return state.replace(memory=memory.replace(keep=keep))

  def after_chunk(self, call: Call, state: SpeculativeState, calls: int, new_U: np.ndarray) -> SpeculativeState:
    self.calls_since_search += calls
    self.shared.generated += round(new_U.mean())
    search_is_due = self.search.active and self.calls_since_search >= self.swift.opt_interval
    if search_is_due and self.account.affords_search(self.first_search_seconds):
      state, self.calls_since_search = self.search_step(call, state), 0
    return state

  def modes(self) -> list[str]:
    *surer, draft = self.all_modes()
    account, search = self.account, self.search
    # A set is tried only if the expected acceptance of a drafted token exceeds its cost. A given set has no score, so it is tried.
    untried = draft not in account.call and account.best([*surer, draft]) != draft
    known = self.shared.score is not None or search.active
    # If leaves are verified beside the chain, a token that the draft ranks second or lower may be accepted too.
    likely = max(self.shared.score or 0.0, search.best_nearness if self.drafter.most_beside else 0.0)
    hopeless = account.on and untried and known and likely <= search.cost(search.best)
    return surer if hopeless else [*surer, draft]

  def most_calls(self, name: str, longest: int) -> int:
    most, searching = super().most_calls(name, longest), self.search.active
    if not self.account.on:
      return self.swift.opt_interval if searching else most
    if searching and self.account.affords_search(self.first_search_seconds):
      # Longer chunks might end a short request before any step of the search, which needs this many tokens more.
      most = min(most, max(self.window + 2 - longest, CHUNK))
    return most

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
      self.drafter = self.after_lookup(self.skip_drafter(search.best, self.sampling))
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
    }  # fmt: skip
