"""The modes of decoding: each continues the rows of any other, and tells what it made of them."""

import itertools

import numpy as np
import pytest

import decoders
from decoders import speculative
from decoders.speculative import CombinedDrafter, PromptLookup
from decoders.speculative.modes import Call, DraftRounds, LookupRounds, OutputText, PlainSteps
from decoders.swift.drafter import SkipDrafter
from decoders.swift.sets import SkipSet
from tests.models import TINY, tiny_model

MODEL = TINY.replace(num_layers=5, max_length=128)
LOOKUP = PromptLookup(4)
BOTH = CombinedDrafter(LOOKUP, SkipDrafter(SkipSet((1,), (2,)), max_draft=4, threshold=0.0))
MODES = (PlainSteps(), LookupRounds(LOOKUP, 'match'), DraftRounds(BOTH, 'match'))


class InTurn(speculative.SpeculativeLoop):
  """Takes three calls in each mode, in turn."""

  def __init__(self, modes):
    self.modes, self.told = itertools.cycle(modes), []
    super().__init__(BOTH)

  def begin(self, clock, lm, prompts, state, plan):
    self.prompts, self.text = prompts, OutputText(np.array([len(prompt) for prompt in prompts]))
    return super().begin(clock, lm, prompts, state, plan)

  def advance(self, clock, lm, state, steps, eos_E, values):
    mode = next(self.modes)
    state, calls, tokens = mode.advance(Call(clock, lm, eos_E, values), self.text, state, 3)
    self.told.append((mode.name, calls, tokens))
    return state, calls

  def finished(self, rows_R, state):
    super().finished(rows_R, state)
    self.behind = self.text.is_behind
    self.whole = np.asarray(self.text.complete(decoders.programs.Clock(), state).text)


@pytest.mark.slow
@pytest.mark.parametrize('first', range(3))
def test_each_way_goes_on_where_another_stopped(first):
  lm, prompt, most = tiny_model(MODEL), [4, 5, 6, 4, 5], 40
  plain = decoders.generate(lm, [prompt], max_new_tokens=most, eos_id=None)
  loop = InTurn(MODES[first:] + MODES[:first])
  out = decoders.generate(lm, [prompt], max_new_tokens=most, eos_id=None, loop=loop)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert {name for name, _, _ in loop.told} == {'plain', 'lookup', 'draft'}
  assert all(tokens == calls <= 3 for name, calls, tokens in loop.told if name == 'plain')
  assert sum(tokens for _, _, tokens in loop.told) == most - 1  # The first token is the prefill's.
  assert loop.behind == (loop.told[-1][0] == 'plain')
  # All but perhaps the last token are where rounds look for them.
  np.testing.assert_array_equal(loop.whole[0, : len(prompt) + most], [*prompt, *plain.tokens[0]])


@pytest.mark.slow
def test_tokens_are_those_of_rows_that_go_on():
  lm, prompts = tiny_model(MODEL), [[1, 2, 3], [4, 5, 6]]
  plain = decoders.generate(lm, prompts, max_new_tokens=20, eos_id=None).tokens
  early = next(int(token) for token in plain[0, 1:] if token not in plain[1])  # Only the first row ends there.
  loop = InTurn([DraftRounds(BOTH, 'match')])
  out = decoders.generate(lm, prompts, max_new_tokens=20, eos_id=early, loop=loop)
  assert out.lengths[0] < 20 == out.lengths[1]
  alone = loop.told[-1]  # In the last chunk the second row was alone.
  assert alone[1] <= alone[2] <= 5 * alone[1]
  assert sum(tokens for _, _, tokens in loop.told) <= 20 - 1 + 1e-9
