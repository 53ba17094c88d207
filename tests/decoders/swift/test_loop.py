"""The loop of one request: whatever the guard decides, the tokens are plain decoding's."""

import gc
import weakref

import numpy as np
import pytest

import decoders
from decoders import speculative
from decoders.swift import Stream, SwiftConfig, SwiftLoop, loop
from decoders.swift.guard import Account
from tests.models import TINY, tiny_model

MODEL = TINY.replace(num_layers=5, max_length=128)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [3]]
SMALL = SwiftConfig(max_draft=4, context_window=8, threshold=0.05, guard=False, candidates=2, static_when_found=False)


@pytest.mark.slow
def test_plain_steps_between_rounds(monkeypatch):
  """The guard may change its mind at any time."""
  lm = tiny_model(MODEL)
  plain = decoders.generate(lm, PROMPTS, max_new_tokens=60)
  monkeypatch.setattr(Account, 'decides', lambda self, modes: modes[int(self.spent * 1e9) % len(modes)])
  monkeypatch.setattr(loop, 'CHUNK', 3)
  out = Stream(lm, SMALL).generate(PROMPTS, max_new_tokens=60, lookup=speculative.PromptLookup(4))
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert 0 < out.stats['plain_steps'] < 60 and out.stats['rounds'] > 0


@pytest.mark.slow
def test_the_loop_of_a_request_goes_on_where_the_last_one_stopped():
  lm = tiny_model(MODEL)
  stream, scored = Stream(lm, SMALL), 0
  for request in range(1, 3):
    loop = SwiftLoop(stream, 'match', False, None)
    decoders.generate(lm, [[1, 2, 3]], max_new_tokens=30, eos_id=None, loop=loop)
    assert stream.shared.generated == 29 * request  # The first token is the prefill's.
    assert loop.stats()['searched_sets'] == stream.search.iterations - scored > 0
    scored = stream.search.iterations


def test_a_stream_is_let_go_of_at_once():
  """It holds the model's weights, so it must not wait for the garbage collector."""
  stream = Stream(tiny_model(MODEL), SMALL)
  stream.generate([[1, 2, 3]], max_new_tokens=4)
  kept = weakref.ref(stream)
  gc.collect()
  gc.disable()
  try:
    del stream
    assert kept() is None
  finally:
    gc.enable()
