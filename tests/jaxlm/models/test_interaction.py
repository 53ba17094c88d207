"""Scores, logits and contributions are what their formulas say, written as loops over texts, classes and positions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models import interaction
from jaxlm.models.interaction import Aggregation, Mlp

B, P, K, C, M = 2, 5, 3, 7, 4


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  states, table, bias = rng.normal(size=(B, P, K)), rng.normal(size=(C, K)), rng.normal(size=C)
  mlp = Mlp(rng.normal(size=(P, M)), rng.normal(size=M), rng.normal(size=M), np.array(0.3))
  mask = np.array([[True, True, True, False, False], [False, True, True, True, True]])
  return states, table, bias, mask, mlp


def loop(states, table, bias, mask, mlp, how):
  """Returns the logits, one class of one text at a time, in float64."""
  out = np.zeros((len(states), len(table)))
  for b, s in itertools.product(range(len(states)), range(len(table))):
    scores = []
    for t in range(states.shape[1]):
      real = mask[b, t] or how.mask == 'none'
      score = states[b, t] @ table[s] if real else 0.0
      score += bias[s] if bias is not None and (real or how.mask == 'before') else 0.0
      scores.append(score)
    n = states.shape[1] if how.mask == 'none' else mask[b].sum()
    sums = {'sum': sum(scores), 'mean': sum(scores) / n, 'none': 0.0}
    last = states.shape[1] - 1 if how.mask == 'none' else np.flatnonzero(mask[b])[-1]
    if how.aggregator == 'mlp':
      out[b, s] = np.maximum(scores @ mlp.kernel_in + mlp.bias_in, 0) @ mlp.kernel_out + mlp.bias_out
      out[b, s] += sums[how.residual]
    else:
      out[b, s] = scores[last] if how.aggregator == 'last' else sums[how.aggregator]
  return out


AGGREGATIONS = [
  *(Aggregation('mlp', residual, mask) for residual in ('none', 'sum', 'mean') for mask in ('after', 'before', 'none')),
  *(Aggregation(name, 'none', mask) for name in ('sum', 'mean', 'last') for mask in ('after', 'none')),
]


def single(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.mark.parametrize('how', AGGREGATIONS, ids=lambda how: '-'.join(how))
def test_logits_are_their_loops_and_contributions_add_up_to_them(arrays, how):
  states, table, bias, mask, mlp = arrays
  expected = loop(*arrays, how)
  given = single((states, table, bias)), jnp.asarray(mask), single(mlp)
  logits = interaction.class_logits(*given[0], given[1], given[2], how)
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  scores = interaction.interaction_scores(*given[0], given[1], how.mask)
  parts, rest = interaction.contribution_scores(scores, given[1], given[2], how)
  np.testing.assert_allclose(parts.sum(-1) + rest, expected, atol=1e-5)
  if how.aggregator != 'mlp':
    np.testing.assert_allclose(rest, 0, atol=1e-5)
  if how.mask == 'after':
    assert not np.any(np.asarray(parts)[~np.broadcast_to(mask[:, None], parts.shape)])


@pytest.mark.parametrize('tile', [1, 3, 6])
def test_tiles_of_classes_change_neither_logits_nor_gradients(arrays, tile):
  states, table, bias, mask, mlp = single(arrays[:3]) + (jnp.asarray(arrays[3]), single(arrays[4]))
  how = Aggregation('mlp', 'sum', 'after')
  weights = jnp.arange(B * C, dtype=jnp.float32).reshape(B, C)

  def total(trained, tile):
    states, table, bias, mlp = trained
    return jnp.sum(weights * interaction.class_logits(states, table, bias, mask, mlp, how, tile=tile))

  whole = jax.value_and_grad(total)((states, table, bias, mlp), 0)
  tiled = jax.value_and_grad(total)((states, table, bias, mlp), tile)
  for one, other in zip(jax.tree.leaves(tiled), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
  # Tiles without a class bias, as in the paper.
  plain = [interaction.class_logits(states, table, None, mask, mlp, how, tile=n) for n in (0, tile)]
  np.testing.assert_allclose(*plain, atol=1e-5)


def test_without_biases_contributions_leave_no_rest(arrays):
  states, table, _, mask, mlp = single(arrays[:3]) + (jnp.asarray(arrays[3]), single(arrays[4]))
  mlp = mlp._replace(bias_in=jnp.zeros(M), bias_out=None)
  scores = interaction.interaction_scores(states, table, None, mask)
  parts, rest = interaction.contribution_scores(scores, mask, mlp, Aggregation())
  np.testing.assert_allclose(rest, 0, atol=1e-5)
  assert np.abs(parts).max() > 0.1
