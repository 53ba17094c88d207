"""Scores, logits and contributions are what their formulas say, written as loops over texts, classes and positions."""

import functools
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
  return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


@jax.jit
def computed(states, table, bias, mask, mlp):
  """Returns (logits, contributions, their rest) of every aggregation, in one program."""
  found = []
  for how in AGGREGATIONS:
    scores = interaction.interaction_scores(states, table, bias, mask, how.mask)
    logits = interaction.class_logits(states, table, bias, mask, mlp, how)
    found.append((logits, *interaction.contribution_scores(scores, mask, mlp, how)))
  return found


@pytest.fixture(scope='module')
def results(arrays):
  return dict(zip(AGGREGATIONS, computed(*single(arrays[:3]), arrays[3], single(arrays[4]))))


@pytest.mark.parametrize('how', AGGREGATIONS, ids=lambda how: '-'.join(how))
def test_logits_are_their_loops_and_contributions_add_up_to_them(arrays, results, how):
  expected, mask = loop(*arrays, how), arrays[3]
  logits, parts, rest = map(np.asarray, results[how])
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  np.testing.assert_allclose(parts.sum(-1) + rest, expected, atol=1e-5)
  if how.aggregator != 'mlp':
    np.testing.assert_allclose(rest, 0, atol=1e-5)
  if how.mask == 'after':
    assert not np.any(parts[~np.broadcast_to(mask[:, None], parts.shape)])


HOW = Aggregation('mlp', 'sum', 'after')


@functools.partial(jax.jit, static_argnums=2)
def with_gradients(trained, mask, tile):
  """Returns ((weighted sum of the logits, logits without a class bias), gradients)."""
  weights = np.arange(B * C, dtype=np.float32).reshape(B, C)

  def total(trained):
    states, table, bias, mlp = trained
    plain = interaction.class_logits(states, table, None, mask, mlp, HOW, tile=tile)
    return jnp.sum(weights * interaction.class_logits(states, table, bias, mask, mlp, HOW, tile=tile)), plain

  return jax.value_and_grad(total, has_aux=True)(trained)


@pytest.fixture(scope='module')
def untiled(arrays):
  return with_gradients((*single(arrays[:3]), single(arrays[4])), arrays[3], 0)


@pytest.mark.parametrize('tile', [1, 3, 6])
def test_tiles_of_classes_change_neither_logits_nor_gradients(arrays, untiled, tile):
  tiled = with_gradients((*single(arrays[:3]), single(arrays[4])), arrays[3], tile)
  for one, other in zip(jax.tree.leaves(tiled), jax.tree.leaves(untiled), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_tiles_in_bfloat16_are_near(arrays, untiled):
  states = np.asarray(arrays[0], jnp.bfloat16)
  tiled = with_gradients((states, *single(arrays[1:3]), single(arrays[4])), arrays[3], 3)
  for one, other in zip(jax.tree.leaves(tiled), jax.tree.leaves(untiled), strict=True):
    scale = np.abs(other).max()
    np.testing.assert_allclose(np.asarray(one, np.float32) / scale, other / scale, atol=2e-2)


@pytest.mark.parametrize('tile', [25])
def test_tiles_need_a_tenth_of_the_memory_forward_and_backward(tile):
  """What is counted is the memory that a compiled program holds besides its arguments and results."""
  B, P, K, C, M = 64, 20, 8, 500, 40
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  given = shape(B, P, K), shape(C, K), shape(C), Mlp(shape(P, M), shape(M), shape(M), shape())
  mask = np.ones((B, P), bool)

  def held(tile, backward):
    logits = lambda states, table, bias, mlp: interaction.class_logits(states, table, bias, mask, mlp, HOW, tile=tile)
    run = (lambda *x: jax.vjp(logits, *x)[1](np.ones((B, C), np.float32))) if backward else logits
    return jax.jit(run).lower(*given).compile().memory_analysis().temp_size_in_bytes

  for backward in (False, True):
    plain = held(0, backward)
    assert plain > 4 * B * C * P and held(tile, backward) <= plain / 10


@functools.partial(jax.jit, static_argnums=4)
def contributions(states, table, mask, mlp, how):
  return interaction.contribution_scores(interaction.interaction_scores(states, table, None, mask), mask, mlp, how)


def test_without_biases_contributions_leave_no_rest(arrays):
  (states, table, _), mlp = single(arrays[:3]), single(arrays[4])
  mlp = mlp._replace(bias_in=np.zeros(M, np.float32), bias_out=None)
  parts, rest = contributions(states, table, arrays[3], mlp, Aggregation())
  np.testing.assert_allclose(rest, 0, atol=1e-5)
  assert np.abs(parts).max() > 0.1
