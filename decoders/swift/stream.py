"""Requests to a model that drafts for itself, over which the sub-layers to skip are searched."""

from collections.abc import Sequence
import math
import time
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from decoders.fingerprint import fingerprint
from decoders.output import Output
from decoders.plain import generate as generate_plain
from decoders.prefill import prefill
from decoders.programs import Clock
from decoders.speculative import trees
from decoders.speculative.combined import CombinedDrafter
from decoders.speculative.loop import SpeculativeLoop
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.speculative.rounds import Drafter, SpeculativeState
from decoders.strategies import PlainLoop
from decoders.swift import sets as skip_sets
from decoders.swift import skipping
from decoders.swift.config import SwiftConfig
from decoders.swift.drafter import SkipDrafter
from decoders.swift.guard import CHUNK, Account
from decoders.swift.search import Search, predicted_speedup
from decoders.swift.sets import SkipSet
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket

FIRST = 2  # Rounds of a draft that was never tried: what they cost is not known.
MOST = 256  # Rounds or steps between two decisions of the guard at most; as many as take
PAUSE = 0.5  # seconds, so that deciding costs little beside them.


def generate(
  lm: LanguageModel,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  max_new_tokens: int = 64,
  swift: SwiftConfig = SwiftConfig(),
  **options,
) -> Output:
  """Continues each prompt as `decoders.generate` does; for arguments, and for more than one call, see `Stream`."""
  return Stream(lm, swift).generate(prompts, max_new_tokens=max_new_tokens, **options)


class Stream:
  """Requests to one model, over which the set to skip is searched.

  Attributes:
    search: what was found so far; see `decoders.swift.search.Search`.

  Raises:
    ValueError: a model with fewer than 4 layers, a set that it cannot skip, a file that is damaged or whose set is another
      model's.
    OSError: a file of sets that cannot be written.
  """

  def __init__(self, lm: LanguageModel, swift: SwiftConfig = SwiftConfig()):
    self.lm, self.swift = lm, swift
    costs, fixed = draft_bytes(lm)
    self.saved_as = None
    found = self.saved_score = None
    if swift.sets is not None:
      self.saved_as = f'{fingerprint(lm)["checksum of weights"]:08x}/{swift.task}'
      if swift.skip is None and (saved := skip_sets.load(swift.sets, self.saved_as, lm.config.num_layers)) is not None:
        found, self.saved_score = saved
    start = found if swift.skip is None else swift.skip
    self.search = Search(swift, lm.config.num_layers, costs, start=start, fixed_cost=fixed)
    if found is not None:
      self.search.stopped = 'loaded'
    if self.saved_as is not None and self.search.active:
      skip_sets.check_writable(swift.sets)
    self.account = Account(swift.guard)
    self.generated = 0  # tokens of all requests, which tell the search what is new to it

  def generate(
    self,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    rule: trees.Rule = 'match',
    lookup: PromptLookup | None = None,
    **options,
  ) -> Output:
    """Continues each prompt.

    Args:
      prompts, max_new_tokens, options: as for `decoders.generate`.
      rule: as for `decoders.speculative.generate`.
      lookup: drafts first where it finds something; SWIFT elsewhere.

    Raises:
      ValueError: as `decoders.generate`.
    """
    loop = SwiftLoop(self, rule, 'sampling' in options and options['sampling'].temperature > 0, lookup)
    out = generate_plain(self.lm, prompts, max_new_tokens=max_new_tokens, loop=loop, **options)
    self.generated += self.swift.context_window  # No window of the next request overlaps the last one's.
    return out

  @property
  def score(self) -> float | None:
    """Matchness of the set drafted with; None where nothing is known of it."""
    return self.search.best_score or self.saved_score

  def ended(self) -> None:
    """Writes the set that a search has found, if there is a file for it; warns where that fails, and the request goes on."""
    if self.saved_as is not None:
      skip_set, score = self.search.best, self.search.best_score
      try:
        skip_sets.save(self.swift.sets, self.saved_as, skip_set, self.lm.config.num_layers, score=score)
      except (OSError, DataError) as e:
        warnings.warn(
          f'{skip_set}, which a search has found, could not be saved in {self.swift.sets}: {e}', stacklevel=2
        )


def matchness(
  lm: LanguageModel, ids: Sequence[int], sets: Sequence[SkipSet], window: int | None = None, at_once: int = 8
) -> np.ndarray:
  """Returns the share of a text's last tokens that the model finds likeliest without the sub-layers of each set, [C] float32.

  Args:
    ids: the text, best the model's own.
    window: how many of the last tokens (none: half of them).
    at_once: sets that are scored in one pass.

  Raises:
    ValueError: a window that is longer than the text allows, or a set that the model cannot skip.
  """
  window = len(ids) // 2 if window is None else window
  if not 1 <= window < len(ids):
    raise ValueError(f'{window=} must be at least 1 and less than the {len(ids)} tokens of the text.')
  text, total = jnp.asarray([list(ids)], jnp.int32), jnp.asarray([len(ids)])
  _, cache = prefill(lm.params, text, total, total, config=lm.config, capacity=len(ids))
  keep = np.stack([s.keep(lm.config.num_layers) for s in sets])
  first, valid, static = total - window - 1, jnp.ones(1, bool), {'config': lm.config, 'window': window}
  parts = [keep[i : i + at_once] for i in range(0, len(keep), at_once)]
  score = lambda part: skipping.scores(lm.params, jnp.asarray(part), text, first, valid, total, cache, **static)[0]
  return np.concatenate([score(part) for part in parts])


def draft_bytes(lm: LanguageModel) -> tuple[np.ndarray, float]:
  """Returns (bytes of each sub-layer's parameters, as `SkipSet.vector` orders them; bytes that a draft step always reads)."""
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  layers = [lm.params[f'layer_{i}'] for i in range(lm.config.num_layers)]
  attention = [sum(size(v) for k, v in layer.items() if k.startswith('attention')) for layer in layers]
  mlp = [sum(size(v) for k, v in layer.items() if k.startswith('mlp')) for layer in layers]
  head = lm.params['embed'] if lm.config.tied_embeddings else lm.params['head']
  return np.array(attention[1:-1] + mlp[1:-1], float), float(
    attention[0] + attention[-1] + mlp[0] + mlp[-1] + size(head)
  )


class SwiftLoop(SpeculativeLoop):
  """Rounds, and between them steps of the search and decisions of the guard."""

  def __init__(self, stream: Stream, rule: trees.Rule, sampling: bool, lookup: PromptLookup | None):
    self.stream, self.sampling, self.lookup = stream, sampling, lookup
    super().__init__(self.drafter_of(stream.search.best), rule)
    self.window = stream.swift.context_window
    self.since = 0

  def clear(self) -> None:
    super().clear()
    self.search_seconds, self.searched, self.plain_steps = 0.0, 0, 0
    self.unsearched = 0  # rounds and steps since the search was last here
    self.search_guess = math.inf  # seconds of a step of the search, before there was one

  def drafter_of(self, skip_set: SkipSet) -> Drafter:
    c = self.stream.swift
    found = not self.stream.search.active and c.static_when_found
    how = 'static' if found else c.draft
    # Where the set is data all sets share a program, so the drafter must not tell them apart.
    start = skip_set if how == 'static' else skip_sets.SkipSet()
    own = SkipDrafter(
      start, how, c.max_draft, c.threshold, c.adapt_threshold, c.width_bounds, c.widths(not self.sampling)
    )
    return own if self.lookup is None else CombinedDrafter(self.lookup, own)

  def begin(self, clock, lm, prompts, state, plan):
    state, self.stale = super().begin(clock, lm, prompts, state, plan), False
    self.prompt_lengths = np.array([len(p) for p in prompts])
    # A step of the search reads so many tokens at once, as reading the prompts did.
    read = (self.stream.swift.num_candidates + 1) * self.window
    guess = clock.seconds.get('prefill', 0.0) * read / bucket(int(self.prompt_lengths.max()))
    self.search_guess = min(self.search_guess, guess)
    self.stream.account.turn((*state.text.shape, self.sampling, self.lookup is not None))
    return self.skipping(state)

  def skipping(self, state: SpeculativeState) -> SpeculativeState:
    """Returns the state with the best set in its drafter's memory."""
    keep = jnp.asarray(self.stream.search.best.keep(self.stream.lm.config.num_layers))
    memory = state.memory
    if isinstance(self.drafter, CombinedDrafter):
      return state.replace(memory=(memory[0], memory[1].replace(keep=keep), memory[2]))
    return state.replace(memory=memory.replace(keep=keep))

  def advance(self, clock: Clock, lm: LanguageModel, state: SpeculativeState, steps: int, eos_E, values):
    search, account, taken = self.stream.search, self.stream.account, 0
    while taken < steps and not bool(jnp.all(state.done)):
      way, before, compiled = account.decides(self.ways()), self.now(clock), clock.compile_seconds
      going, had, rounds = np.flatnonzero(~np.asarray(state.done)), np.array(state.lengths), np.array(state.rounds)
      calls = min(self.calls(way, self.window + 2 - int(had[going].max())), steps - taken)
      if way != 'plain':
        state = self.refreshed(clock, state)
      if way == 'draft':
        state, made = self.rounds(clock, lm, state, calls, eos_E, values, self.drafter)
      elif way == 'lookup':
        first, *rest = state.memory
        state, made = self.rounds(clock, lm, state.replace(memory=first), calls, eos_E, values, self.lookup)
        state = state.replace(memory=(state.memory, *rest))
      else:
        state, made = PlainLoop.advance(self, clock, lm, state, calls, eos_E, values)
        self.stale, self.plain_steps = True, self.plain_steps + int(made)
      taken += int(made)
      new, rounds = (np.asarray(state.lengths) - had)[going], (np.asarray(state.rounds) - rounds)[going]
      # Tokens of a row that does not end in this chunk; other rows do not count.
      tokens = float(made) if way == 'plain' else float(made) * new.sum() / max(rounds.sum(), 1)
      first = clock.compile_seconds > compiled
      account.note(way, self.now(clock) - before, tokens, max(int(made), 1), first)
      self.stream.generated += round(new.mean())
      self.unsearched += int(made)
      due = search.active and self.unsearched >= self.stream.swift.opt_interval
      if due and account.affords_search(self.search_guess):
        state, self.unsearched = self.look_for_better(clock, lm, state), 0
    return state, taken

  def ways(self) -> list[str]:
    """Returns how rows may go on now, the surest way first."""
    search, account = self.stream.search, self.stream.account
    surer = ['plain', *(['lookup'] if self.lookup is not None else [])]
    # Before a set is tried, a token that it drafts must be accepted more often than it costs; of a set given nothing is known.
    untried = 'draft' not in account.call and account.best([*surer, 'draft']) != 'draft'
    known = self.stream.score is not None or search.active
    # Beside a token that is not guessed there may be a candidate that is.
    likely = max(self.stream.score or 0.0, search.best_nearness if self.drafter.most_beside else 0.0)
    hopeless = account.on and untried and known and likely <= search.cost(search.best)
    return surer if hopeless else [*surer, 'draft']

  def calls(self, way: str, missing: int) -> int:
    """Returns how many rounds or steps to take until the next decision.

    Args:
      missing: tokens until there are enough to score sets on.
    """
    searching, account = self.stream.search.active, self.stream.account
    if not account.on:
      return self.stream.swift.opt_interval if searching else MOST
    if way == 'draft' and way not in account.call and way not in account.worst:
      return FIRST
    if way not in account.call or way != account.best(self.ways()):
      return CHUNK
    most = MOST
    if searching and account.affords_search(self.search_guess):
      most = max(missing, CHUNK)  # While rows go on: with short requests there would never be a step of the search.
    return min(max(int(PAUSE / account.call[way]), CHUNK), most)

  def refreshed(self, clock: Clock, state: SpeculativeState) -> SpeculativeState:
    """Returns the state with all output in its text: plain steps leave it out."""
    if self.stale:
      output = state.text, state.tokens, jnp.asarray(self.prompt_lengths), state.lengths
      state, self.stale = state.replace(text=clock.run('decode', with_output, *output)), False
    return state

  def now(self, clock: Clock) -> float:
    return time.perf_counter() - clock.compile_seconds

  def look_for_better(self, clock: Clock, lm: LanguageModel, state: SpeculativeState) -> SpeculativeState:
    """Scores some sets on tokens just generated, if there are enough; draws the consequences."""
    search, paper, window = self.stream.search, self.stream.swift.fidelity == 'paper', self.window
    lengths, last = np.asarray(state.lengths), np.asarray(state.position)
    valid = ~np.asarray(state.done) & (lengths > window + 1)
    if not valid.any() or self.stream.generated == self.since:
      return state
    before, was, state = self.now(clock), search.best, self.refreshed(clock, state)
    # The paper's code scores the first tokens of a request, we the latest.
    first = last - lengths + 1 if paper else last - window
    sets = search.propose(self.stream.generated)
    scored = sets if paper else [*sets, search.best]
    keep = jnp.asarray(np.stack([s.keep(lm.config.num_layers) for s in scored]))
    matched, near = clock.run(
      'search', skipping.scores, lm.params, keep, state.text, jnp.asarray(np.maximum(first, 0)), jnp.asarray(valid),
      state.total, state.cache, config=lm.config, window=window,
    )  # fmt: skip
    matched, near = np.asarray(matched).tolist(), np.asarray(near).tolist()
    if paper:
      search.observe(sets, matched)
    else:
      search.observe(sets, matched[:-1], matched[-1], near if self.stream.swift.compare == 'nearness' else None)
    self.since, self.searched = self.stream.generated, self.searched + len(sets)
    if not search.active:
      self.stream.ended()
    if search.best != was or not search.active:
      self.drafter = self.drafter_of(search.best)
    if search.best != was:
      self.stream.account.changed('draft')
      state = self.skipping(state)
    self.stream.account.searched(self.now(clock) - before)
    self.search_seconds += self.now(clock) - before
    return state

  def stats(self) -> dict[str, Any]:
    stats, search, account = super().stats(), self.stream.search, self.stream.account
    cost = search.cost(search.best)
    score = float('nan') if self.stream.score is None else self.stream.score
    return stats | {
      'skipped': {'attention': search.best.attention, 'mlp': search.best.mlp},
      'skip_ratio': len(search.best) / skip_sets.num_skippable(self.stream.lm.config.num_layers),
      'draft_cost': cost, 'matchness': score,
      'predicted_speedup': float(predicted_speedup(score, cost, self.stream.swift.max_draft)),
      'search_seconds': self.search_seconds, 'searched_sets': self.searched, 'search_ended': search.stopped,
      'plain_steps': self.plain_steps, 'seconds_per_token': dict(account.pace),
    }  # fmt: skip


@jax.jit
def with_output(text_RS, tokens_RM, start_R, lengths_R):
  """Returns the text with the output where it follows the prompts."""
  R, M = tokens_RM.shape
  index_RM = jnp.where(
    jnp.arange(M)[None] < lengths_R[:, None], start_R[:, None] + jnp.arange(M)[None], text_RS.shape[1]
  )
  return text_RS.at[jnp.arange(R)[:, None], index_RM].set(tokens_RM, mode='drop')
