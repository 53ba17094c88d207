"""The guard: what searching and trying cost stays within its share, and the fastest mode wins."""

import numpy as np
import pytest

import decoders
from decoders import prefill as prefill_lib
from decoders import state as decode_state
from decoders.programs import Clock
from decoders.speculative import rounds
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.swift import Stream, SwiftConfig, SwiftLoop
from decoders.swift.guard import Account
from decoders.swift.search_base import SearchBase
from decoders.swift.sets import SkipSet
from tests.models import TINY, tiny_model

MODES = ['plain', 'lookup', 'draft']


def decode(account, pace, chunks, rng, modes=MODES):
  """Decodes chunks of 8 tokens at about these seconds a token; returns how often each mode was taken."""
  taken = dict.fromkeys(modes, 0)
  for _ in range(chunks):
    mode = account.decides(modes)
    taken[mode] += 1
    account.note(mode, 8 * pace[mode] * rng.uniform(0.8, 1.2), 8, calls=8)
  return taken


def test_it_never_lends_more_than_its_share():
  account, rng = Account(True), np.random.default_rng(0)
  for _ in range(2000):
    decode(account, {'plain': 0.01, 'draft': 0.05}, 1, rng, ['plain', 'draft'])
    if account.affords_search(0.1):
      account.searched(rng.uniform(0.05, 0.15))
  assert account.lost <= 0.05 * account.spent and account.spent > 100


@pytest.mark.parametrize('fastest', MODES)
def test_the_fastest_way_wins(fastest):
  pace = {mode: 0.01 if mode == fastest else 0.02 for mode in MODES}
  account = Account(True)
  taken = decode(account, pace, 400, np.random.default_rng(0))
  assert taken[fastest] > 360 and min(taken.values()) > 0
  assert account.lost <= 0.05 * account.spent


def test_what_has_become_fast_is_found():
  account, rng = Account(True), np.random.default_rng(0)
  decode(account, {'plain': 0.01, 'lookup': 0.03, 'draft': 0.03}, 200, rng)
  assert decode(account, {'plain': 0.01, 'lookup': 0.03, 'draft': 0.004}, 400, rng)['draft'] > 200


def test_a_bad_moment_of_plain_steps_is_not_believed_for_long():
  """Measured once, ten times slower than they are, they would make any draft the best."""
  account, rng = Account(True), np.random.default_rng(0)
  decode(account, {'plain': 0.1, 'draft': 0.015}, 2, rng, ['plain', 'draft'])
  taken = decode(account, {'plain': 0.01, 'draft': 0.015}, 500, rng, ['plain', 'draft'])
  assert taken['plain'] > 350  # The second try waits for its share of the time.


def test_tries_leave_time_for_the_search():
  account, rng = Account(True), np.random.default_rng(0)
  searches = 0
  for _ in range(1000):
    decode(account, {'plain': 0.01, 'draft': 0.009}, 1, rng, ['plain', 'draft'])
    if account.affords(0.1):
      account.searched(0.1)
      searches += 1
  assert searches * 0.1 > 0.01 * account.spent and account.lost <= 0.05 * account.spent


def test_the_first_run_of_a_program_is_paid_and_not_believed():
  account = Account(True)
  account.note('plain', 1.0, 8, first=True)
  assert account.lost == 0 and not account.pace  # There was no other mode.
  account.note('plain', 1.0, 100)
  account.note('draft', 0.5, 8, calls=8, first=True)
  assert account.lost == pytest.approx(0.5 - 0.08)
  assert 'draft' not in account.pace and not account.affords(0.0)
  account.note('plain', 30.0, 3000, calls=3000)
  assert account.affords(0.1) and account.call['plain'] == 0.01


def test_other_conditions_are_measured_anew():
  account, rng = Account(True), np.random.default_rng(0)
  account.turn('short')
  decode(account, {'plain': 0.01, 'lookup': 0.02, 'draft': 0.02}, 100, rng)
  account.turn('short')
  assert set(account.pace) == set(MODES)
  account.turn('long')
  assert not account.pace and account.decides(MODES) == 'plain'
  account.turn('short')
  assert set(account.pace) == set(MODES)  # and remembered


def test_a_way_that_has_changed_is_taken_for_what_it_was_until_it_is_measured():
  account = Account(True)
  for mode, seconds in (('plain', 8.0), ('draft', 4.0)):
    account.note(mode, seconds, 8)
  account.lost = account.spent  # The step of the search that changed it was dear: there is time for nothing more.
  account.changed('draft')
  assert account.decides(['plain', 'draft']) == 'draft' and 'draft' not in account.call
  account.note('draft', 16.0, 8)
  assert account.pace['draft'] == 2.0 and account.decides(['plain', 'draft']) == 'plain'


def test_without_a_guard_the_most_daring_way_is_taken():
  account = Account(False)
  assert account.decides(MODES) == 'draft' and account.affords(1e9)


def test_drafts_that_cost_more_than_they_may_bring_are_not_tried():
  lm = tiny_model(TINY.replace(num_layers=6))
  stream = Stream(lm, SwiftConfig())
  modes = lambda lookup=None: SwiftLoop(stream, 'match', False, lookup).modes()
  assert modes() == ['plain'] and modes(PromptLookup()) == ['plain', 'lookup']  # Nothing is scored yet.
  cost = stream.search.cost(stream.search.best)
  for score, expected in ((cost - 0.01, ['plain']), (cost + 0.01, ['plain', 'draft'])):
    stream.search._best_total, stream.search._best_windows = np.array([score, score]), 1
    assert modes() == expected
  stream.search._best_total = np.full(2, cost - 0.01)
  stream.account.note('draft', 1.0, 8)  # What was tried is judged by its time.
  assert modes() == ['plain', 'draft']
  given = SwiftConfig(search=False)
  assert SwiftLoop(Stream(lm, given), 'match', False, None).modes() == ['plain', 'draft']  # Nothing will be known.


@pytest.fixture
def seconds(monkeypatch):
  """A clock of its own: a step takes a millisecond, a round 20, reading 16 tokens 2, a step of the search 20."""
  spent = [0.0]
  run = Clock.run

  def timed(self, part, function, *args, **static):
    out = run(self, part, function, *args, **static)
    if function in (decode_state.decode, rounds.decode):
      spent[0] += (0.001 if function is decode_state.decode else 0.02) * int(out[1])
    elif part == 'search':
      spent[0] += 0.02
    elif function is prefill_lib.prefill:
      self.seconds['prefill'] = 0.002
    return out

  monkeypatch.setattr(Clock, 'run', timed)
  monkeypatch.setattr(SwiftLoop, 'now', lambda self, clock: spent[0])
  return spent


@pytest.mark.slow
def test_a_stream_of_short_requests_is_searched_on_and_loses_no_more_than_its_share(seconds, monkeypatch):
  """With a step of a millisecond a chunk would be a whole request, after which there is nothing left to score sets on."""
  lm = tiny_model(TINY.replace(num_layers=5))
  monkeypatch.setattr(SearchBase, 'cost', lambda self, skip_set: 0.1)  # So that sets are tried, and turn out dear.
  stream, searched, tried = Stream(lm, SwiftConfig(max_draft=4)), 0, 0
  for request in range(120):
    out = stream.generate([[1 + request % 40, 2, 3]], max_new_tokens=50, eos_id=None)
    searched, tried = searched + out.stats['searched_sets'], tried + out.stats['rounds']
    # Against plain decoding's time of as many tokens, from the first request on.
    plain_seconds = 0.001 * 49 * (request + 1)
    assert seconds[0] <= 1.05 * plain_seconds
  assert searched >= 16 and tried > 0


@pytest.mark.slow
def test_a_pace_is_that_of_rows_that_go_on(seconds):
  lm = tiny_model(TINY.replace(num_layers=5))
  prompts = [[1, 2, 3], [4], [5, 6]]
  tokens = decoders.generate(lm, prompts, max_new_tokens=50, eos_id=None).tokens
  stream = Stream(lm, SwiftConfig(search=False, skip=SkipSet((1,), ()), max_draft=4))
  early = next(int(t) for t in tokens[0, 5:] if t not in tokens[1:])  # Only the first row ends there.
  out = stream.generate(prompts, max_new_tokens=50, eos_id=early)
  assert out.lengths[0] < 50 == out.lengths[1]
  assert stream.account.pace['plain'] == pytest.approx(0.001)
