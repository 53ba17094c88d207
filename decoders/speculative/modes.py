"""The modes of decoding that the guard chooses from: plain steps, rounds of prompt lookup, and rounds of a drafter."""

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
  """Arguments that `decoders.generate` passes to a loop's `advance`."""

  clock: Clock
  lm: LanguageModel
  eos: jax.Array  # [E] int32
  values: dict[str, jax.Array]
  """The sampling settings that have an effect (`Sampling.active`)."""


class OutputText:
  """Updates `state.text` before it is read, because plain steps do not write their tokens to it.

  Args:
    prompt_lengths: [R] number of tokens in each row's prompt.
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
  """The result of `Mode.advance`."""

  state: SpeculativeState
  calls: int  # number of calls of the model
  tokens: float  # number of new tokens in a row that did not end


class Mode(Protocol):
  """A mode of decoding. The guard knows it by its `name`."""

  name: str

  def advance(self, call: Call, text: OutputText, state: SpeculativeState, most: int) -> Progress:
    """Decodes for at most `most` calls of the model. The arrays of `state` may be deleted."""


class PlainSteps:
  """Plain decoding: one token per step, without drafts."""

  name = 'plain'

  def advance(self, call: Call, text: OutputText, state: SpeculativeState, most: int) -> Progress:
    state, steps = PlainLoop().advance(call.clock, call.lm, state, most, call.eos, call.values)
    text.is_behind = True
    return Progress(state, int(steps), float(steps))


@dataclasses.dataclass(frozen=True)
class LookupRounds:
  """Rounds in which only prompt lookup drafts. The state has the memory of a `CombinedDrafter` whose first drafter is
  lookup."""

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
  """Rounds in which a drafter drafts, which may be lookup and another one combined."""

  drafter: Drafter
  rule: trees.Rule
  name = 'draft'

  def advance(self, call: Call, text: OutputText, state: SpeculativeState, most: int) -> Progress:
    return rounds_with(self.drafter, self.rule, call, text.complete(call.clock, state), most)


def rounds_with(drafter: Drafter, rule: trees.Rule, call: Call, state: Any, most: int) -> Progress:
  """Takes at most `most` rounds with a drafter. `state.memory` is the drafter's, and `state.text` is complete."""
  # These are copies, because the arrays are donated.
  lengths_R, rounds_R = np.array(state.lengths), np.array(state.rounds)
  state, rounds = run_rounds(call.clock, call.lm, state, most, call.eos, call.values, drafter, rule)
  # The mean is over the rounds that each row took part in, because rows that ended took part in fewer.
  new = (np.asarray(state.lengths) - lengths_R).sum()
  tokens_a_round = new / max((np.asarray(state.rounds) - rounds_R).sum(), 1)
  return Progress(state, int(rounds), float(int(rounds) * tokens_a_round))


@jax.jit
def with_output(text_RS, tokens_RM, start_R, lengths_R):
  """Returns the text with each row's output written after its prompt."""
  R, M = tokens_RM.shape
  index_RM = jnp.where(
    jnp.arange(M)[None] < lengths_R[:, None], start_R[:, None] + jnp.arange(M)[None], text_RS.shape[1]
  )
  return text_RS.at[jnp.arange(R)[:, None], index_RM].set(tokens_RM, mode='drop')
