import numpy as np
import pytest

from jaxlm.data.replaced import replace_tokens


def batch(B=4, T=8, seed=0):
  rows = np.random.default_rng(seed).integers(10, 50, (B, T + 1)).astype(np.int32)
  return {'tokens': rows[:, :-1], 'targets': rows[:, 1:], 'mask': np.ones((B, T), np.float32)}


def test_a_fixed_token_is_the_same_everywhere_also_as_a_target():
  before = batch()
  after = replace_tokens(before, (1, 3), token=1, vocab_size=50)
  assert (after['tokens'][:, [0, 2]] == 1).all() and (after['targets'][:, 1] == 1).all()
  rest = [1, 3, 4, 5, 6, 7]
  np.testing.assert_array_equal(after['tokens'][:, rest], before['tokens'][:, rest])
  np.testing.assert_array_equal(after['targets'][:, [0, *range(2, 8)]], before['targets'][:, [0, *range(2, 8)]])
  assert (before['tokens'] >= 10).all()  # The caller's batch is left alone.


def test_random_tokens_belong_to_their_row_whatever_batch_it_is_in():
  before = batch(B=32)
  after = replace_tokens(before, (2,), token=None, vocab_size=50)
  assert len(set(after['tokens'][:, 1].tolist())) > 10
  np.testing.assert_array_equal(after['tokens'][:, 1], after['targets'][:, 0])
  part = {name: x[5:7] for name, x in before.items()}
  np.testing.assert_array_equal(replace_tokens(part, (2,), token=None, vocab_size=50)['tokens'], after['tokens'][5:7])


def test_padding_rows_stay_and_what_cannot_be_is_refused():
  padded = batch()
  padded['mask'][2] = 0
  after = replace_tokens(padded, (1,), token=1, vocab_size=50)
  np.testing.assert_array_equal(after['tokens'][2], padded['tokens'][2])
  with pytest.raises(ValueError, match='position 9 is outside a row of 8'):
    replace_tokens(padded, (9,), token=1, vocab_size=50)
  with pytest.raises(ValueError, match='token 50 is outside the vocabulary of 50'):
    replace_tokens(padded, (1,), token=50, vocab_size=50)
