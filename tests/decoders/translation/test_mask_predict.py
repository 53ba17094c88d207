"""Mask-predict masks the counts of its formula, and candidate lengths are the likeliest that there is room for."""

import jax
import jax.numpy as jnp
import numpy as np

from decoders.translation import mask_predict


def test_counts_are_exact():
  for n in range(1, 40):
    for K in (1, 2, 3, 4, 7, 10):
      found = [int(mask_predict.masked_count(jnp.int32(n), t, K)) for t in range(K)]
      # n - n t / K in whole numbers: 10 (1 - 9 / 10) is less than 1 in floating point.
      assert found == [max(1, (n * K - n * t) // K) for t in range(K)] and found[0] == n


def test_the_least_likely_tokens_are_masked():
  log_p = jnp.array([[-3.0, -1.0, -2.0, -9.0], [-1.0, -1.0, -1.0, -1.0], [-5.0, -6.0, -1.0, -2.0]])
  found = mask_predict.remask(log_p, jnp.array([3, 4, 2]), jnp.array([2, 3, 1]))
  assert found.tolist() == [[True, False, True, False], [True, True, True, False], [False, True, False, False]]


def test_candidates_are_the_likeliest_lengths_within_the_limit():
  p = np.array([[0.0, 0.3, 0.05, 0.2, 0.05, 0.4], [0.0, 0.2, 0.3, 0.1, 0.1, 0.3], [0, 1, 0, 0, 0, 0]])
  find = jax.jit(mask_predict.candidate_lengths, static_argnums=2)
  lengths, distinct = find(jnp.log(p), jnp.array([4, 5, 1]), 3)
  # Length 1 is raised to 2, and then another candidate of length 2 is not distinct from it.
  assert lengths.tolist() == [[2, 3, 2], [2, 5, 2], [1, 1, 1]]
  assert distinct.tolist() == [[True, True, False], [True, True, False], [True, False, False]]
