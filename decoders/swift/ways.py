"""The ways in which rows go on between two decisions of the guard: plain steps, rounds of prompt lookup, rounds of drafts."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from decoders.programs import Clock
from decoders.speculative import trees
from decoders.speculative.loop import run_rounds
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.speculative.rounds import Drafter, SpeculativeState
from decoders.strategies import PlainLoop
from jaxlm.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Call:
  """What `decoders.generate` hands to a loop when rows are to go on."""

  clock: Clock
  lm: LanguageModel
  eos: jax.Array  # [E] int32
  values: dict[str, jax.Array]
  """The options of sampling that have an effect."""


class OutputText:
  """Brings `state.text` up to date before it is read: plain steps do not write their tokens there.

  Args:
    prompt_lengths: [R] tokens of each row's prompt.
  """

  def __init__(self, prompt_lengths: np.ndarray):
    self.prompt_lengths, self.is_behind = jnp.asarray(prompt_lengths), False

  def complete(self, clock: Clock, state: SpeculativeState) -> SpeculativeState:
    """Returns the state with all output in its text."""
    if not self.is_behind:
      return state
    self.is_behind = False
    text = clock.run('decode', with_output, state.text, state.tokens, self.prompt_lengths, state.lengths)
    return state.replace(text=text)


class Progress(NamedTuple):
  """What a way made of the rows."""

  state: SpeculativeState
  calls: int  # calls of the model
  tokens: float  # that a row got which did not end meanwhile


class Way(Protocol):
  """One way to go on. `name` is what the guard knows it by."""

  name: str

  def advance(self, call: Call, text: OutputText, state: SpeculativeState, most: int) -> Progress:
    """Goes on for at most so many calls of the model. The state is given away: its arrays may be deleted."""


class PlainSteps:
  """A token a step, without drafts."""

  name = 'plain'

  def advance(self, call: Call, text: OutputText, state: SpeculativeState, most: int) -> Progress:
    state, steps = PlainLoop().advance(call.clock, call.lm, state, most, call.eos, call.values)
    text.is_behind = True
    return Progress(state, int(steps), float(steps))


@dataclasses.dataclass(frozen=True)
class LookupRounds:
  """Rounds of prompt lookup alone, in rows whose memory is that of lookup and SWIFT together (`CombinedDrafter`)."""

  lookup: PromptLookup
  rule: trees.Rule
  name = 'lookup'

  def advance(self, call: Call, text: OutputText, state: SpeculativeState, most: int) -> Progress:
    lookup_memory, *other_memories = state.memory
    state = text.complete(call.clock, state).replace(memory=lookup_memory)
    state, rounds, tokens = rounds_with(self.lookup, self.rule, call, state, most)
    return Progress(state.replace(memory=(state.memory, *other_memories)), rounds, tokens)


@dataclasses.dataclass(frozen=True)
class DraftRounds:
  """Rounds in which SWIFT drafts, after lookup where there is one."""

  drafter: Drafter
  rule: trees.Rule
  name = 'draft'

  def advance(self, call: Call, text: OutputText, state: SpeculativeState, most: int) -> Progress:
    return rounds_with(self.drafter, self.rule, call, text.complete(call.clock, state), most)


def rounds_with(drafter: Drafter, rule: trees.Rule, call: Call, state: Any, most: int) -> Progress:
  """Takes at most so many rounds with a drafter whose memory the state has, and whose text is complete."""
  # Copies: the arrays are given away.
  lengths_R, rounds_R = np.array(state.lengths), np.array(state.rounds)
  state, rounds = run_rounds(call.clock, call.lm, state, most, call.eos, call.values, drafter, rule)
  # Rows that ended took part in fewer rounds, and are no measure of the others.
  new = (np.asarray(state.lengths) - lengths_R).sum()
  tokens_a_round = new / max((np.asarray(state.rounds) - rounds_R).sum(), 1)
  return Progress(state, int(rounds), float(int(rounds) * tokens_a_round))


@jax.jit
def with_output(text_RS, tokens_RM, start_R, lengths_R):
  """Returns the text with the output where it follows the prompts."""
  R, M = tokens_RM.shape
  index_RM = jnp.where(
    jnp.arange(M)[None] < lengths_R[:, None], start_R[:, None] + jnp.arange(M)[None], text_RS.shape[1]
  )
  return text_RS.at[jnp.arange(R)[:, None], index_RM].set(tokens_RM, mode='drop')
