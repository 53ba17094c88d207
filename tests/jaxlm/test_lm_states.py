"""States of many texts are those that each text has alone, and lie in a file that is made once."""

import jax
import numpy as np
import pytest

from jaxlm import lm_states
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions
from tests.models import TINY, tiny_model

ROWS = [list(range(1, n + 1)) for n in (5, 20, 16, 1, 17)]
alone = jax.jit(lambda params, tokens: functions.hidden(params, TINY, tokens)[0])


def test_states_are_those_of_each_text_and_are_computed_once(tmp_path, monkeypatch):
  monkeypatch.setattr(lm_states, 'TOKENS', 64)
  lm, folder, seen = tiny_model(), tmp_path / 'states', []
  found = lm_states.kept_states(folder, lm.params, TINY, ROWS, seen.append)
  assert found.shape == (59, TINY.model_dim) and sum(seen) == 5
  longest = np.asarray(alone(lm.params, np.array([ROWS[1]])))[
    0
  ]  # The others are its beginnings, and the model is causal.
  first = 0
  for row in ROWS:
    np.testing.assert_allclose(found[first : first + len(row)], longest[: len(row)], rtol=1e-4, atol=1e-5)
    first += len(row)
  monkeypatch.setattr(lm_states, '_states', None)  # What is there is not computed again.
  np.testing.assert_array_equal(lm_states.kept_states(folder, lm.params, TINY, ROWS), found)


def test_texts_need_a_tokenizer():
  with pytest.raises(ValueError, match='Texts need a tokenizer'):
    lm_states.embed(LanguageModel(TINY, {}), ['a'])
