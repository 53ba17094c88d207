"""The guarded loop drafts where that is faster, and where it is not, it soon stops."""

import numpy as np
import pytest

import decoders
from decoders.speculative.guard import Account
from decoders.speculative.guarded import GuardedLoop
from decoders.speculative.prompt_lookup import PromptLookup
from tests.models import scripted_model

SETTINGS = dict(max_new_tokens=100, eos_id=None)


class Scale(Account):
  """Measurements as if a call with drafts took so many times as long as a plain step."""

  def __init__(self, slower, on=True):
    super().__init__(on)
    self.slower = slower

  def note(self, mode, seconds, tokens, calls=1, first=False):
    super().note(mode, calls * (self.slower if mode == 'draft' else 1.0), tokens, calls, first)


def test_tokens_are_plain_decodings_and_the_faster_way_is_taken():
  lm = scripted_model({i: (5 * i + 3) % 12 for i in range(12)}, 12, num_layers=2)
  plain = decoders.generate(lm, [[1, 2]], **SETTINGS)

  def outputs(account):
    """Returns the outputs of two requests, which share the account."""
    loop = lambda: GuardedLoop(PromptLookup(4), account, 'match', False, None)
    return [decoders.generate(lm, [[1, 2]], loop=loop(), **SETTINGS) for _ in range(2)]

  fast, slow, always = (outputs(Scale(slower, on)) for slower, on in ((1.5, True), (50.0, True), (50.0, False)))
  for out in (*fast, *slow, *always):
    np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert fast[1].stats['plain_steps'] == 0 and fast[1].stats['rounds'] < 40
  assert slow[0].stats['rounds'] <= 2 and slow[1].stats['rounds'] == 0 and slow[1].stats['plain_steps'] > 90
  assert always[0].stats['plain_steps'] == 0
  assert fast[1].stats['seconds_per_token'].keys() == {'plain', 'draft'}


def test_lookup_goes_before_the_drafter_and_is_a_way_of_its_own():
  loop = GuardedLoop(PromptLookup(2), Account(True), 'match', False, PromptLookup(4))
  assert loop.modes() == ['plain', 'lookup', 'draft'] and loop.drafter.first == PromptLookup(4)
  with pytest.raises(ValueError, match="Unknown rule 'greedy'"):
    GuardedLoop(PromptLookup(2), Account(True), 'greedy', False, None)
