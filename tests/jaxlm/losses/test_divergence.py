"""The distances between a draft's and its target's distributions are their definitions, in value and gradient, in any slices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.losses import agreement, divergence

B, T, D, E, V = 3, 7, 4, 6, 11
TEMPERATURE = 0.7


def inputs(seed=0):
  keys = jax.random.split(jax.random.key(seed), 5)
  hidden, target_hidden = jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (B, T, E))
  matrix, target_matrix = jax.random.normal(keys[2], (D, V)), jax.random.normal(keys[3], (E, V))
  mask = jax.random.bernoulli(keys[4], 0.7, (B, T)).astype(jnp.float32)
  return hidden, matrix, target_hidden, target_matrix, mask


def distributions(hidden, matrix, target_hidden, target_matrix, mask, temperature=TEMPERATURE, cap=3.0):
  q = jax.nn.softmax(cap * jnp.tanh(hidden @ matrix / cap) / temperature)
  return q, jax.nn.softmax(target_hidden @ target_matrix / temperature)


def plain(kind, *arrays):
  q, p = distributions(*arrays)
  distance = jnp.sum(p * jnp.log(p / q), -1) if kind == 'kl' else 1 - jnp.sum(jnp.minimum(p, q), -1)
  return jnp.sum(distance * arrays[-1])


@pytest.mark.parametrize('kind', ['kl', 'tv'])
@pytest.mark.parametrize('chunk', [0, 5, 6, None])
def test_distances_are_their_definitions_in_any_slices(kind, chunk):
  arrays = inputs()
  made = lambda *xs: divergence(*xs, kind, temperature=TEMPERATURE, softcap=3.0, chunk=chunk)[0]
  value, gradients = jax.value_and_grad(made, argnums=(0, 1))(*arrays)
  expected = jax.value_and_grad(lambda *xs: plain(kind, *xs), argnums=(0, 1))(*arrays)
  chex.assert_trees_all_close((value, gradients), expected, rtol=1e-4, atol=1e-5)
  assert divergence(*arrays)[1] == arrays[-1].sum() > 0


def test_a_draft_of_few_tokens_gives_the_others_no_probability():
  hidden, matrix, target_hidden, target_matrix, mask = inputs(seed=1)  # Some of the likeliest tokens are the same.
  few, padded = matrix[:, :8], jnp.where(jnp.arange(V) < 8, 0, -1e9)[None, None]
  q = jax.nn.softmax(jnp.pad(hidden @ few, ((0, 0), (0, 0), (0, 3))) + padded)
  p = jax.nn.softmax(target_hidden @ target_matrix)
  sums = lambda x: float(jnp.sum(x * mask))
  args = hidden, few, target_hidden, target_matrix, mask
  overlap = jnp.minimum(p, q).sum(-1)
  assert divergence(*args, 'tv')[0] == pytest.approx(sums(1 - overlap), rel=1e-5)
  same, found, _ = agreement(*args)
  assert found == pytest.approx(sums(overlap), rel=1e-5) and same == sums(p.argmax(-1) == q.argmax(-1)) > 0
  given = divergence(hidden, few, target_hidden, target_matrix[:, :8], mask)[0]
  assert divergence(*args)[0] == pytest.approx(float(given), rel=1e-6)


def test_the_target_gets_no_gradient():
  arrays = inputs()
  gradients = jax.grad(lambda *xs: divergence(*xs)[0], argnums=(1, 2, 3))(*arrays)
  assert np.any(gradients[0]) and not np.any(gradients[1]) and not np.any(gradients[2])


def test_equal_distributions_have_no_distance():
  hidden, matrix, _, _, mask = inputs()
  for kind in ('kl', 'tv'):
    assert divergence(hidden, matrix, hidden, matrix, mask, kind)[0] == 0
  same, overlap, weight = agreement(hidden, matrix, hidden, matrix, mask)
  assert same == weight == mask.sum() and overlap == pytest.approx(float(weight), rel=1e-6)


def test_agreement_is_what_greedy_and_sampled_drafts_have_accepted():
  hidden, matrix, _, _, mask = inputs()
  near = hidden + jax.random.normal(jax.random.key(1), hidden.shape) / 2
  arrays = hidden, matrix, near, matrix, mask
  q, p = distributions(*arrays, temperature=1.0)
  for chunk in (0, 5):
    same, overlap, weight = agreement(*arrays, softcap=3.0, chunk=chunk)
    np.testing.assert_allclose(same, jnp.sum((q.argmax(-1) == p.argmax(-1)) * arrays[-1]))
    np.testing.assert_allclose(overlap, jnp.sum(jnp.minimum(q, p).sum(-1) * arrays[-1]), rtol=1e-5)
  assert 0 < same < weight and weight == arrays[-1].sum()


def test_what_cannot_be_computed_is_named():
  with pytest.raises(ValueError, match="Unknown divergence 'ks'. Did you mean 'kl'"):
    divergence(*inputs(), 'ks')
  with pytest.raises(ValueError, match='temperature=0 must be above 0'):
    divergence(*inputs(), temperature=0)
