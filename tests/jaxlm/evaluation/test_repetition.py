import numpy as np

from jaxlm.evaluation.repetition import repeated_tokens


def test_repeated_tokens_are_counted_by_hand():
  tokens = np.array([[5, 5, 5, 6, 0, 0], [7, 8, 7, 8, 8, 1]])
  assert repeated_tokens(tokens) == (4, 12)
  assert repeated_tokens(tokens, np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]])) == (2, 8)
  assert repeated_tokens(tokens[:, :1]) == (0, 2)
