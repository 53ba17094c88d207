"""OaXE is the least cross-entropy of all permutations, from logits and from hidden states, and has the gradient of that permutation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import losses
from jaxlm.losses import chunked_oaxe, joint_weight, truncation_margin
from jaxlm.losses.position_costs import chunked_position_costs, position_costs
from pallas_kernels import linear_assignment
from tests.jaxlm.losses.order_cases import (
  LENGTHS,
  MASK,
  B,
  D,
  T,
  V,
  best_order,
  cross_entropy_at,
  inputs,
  sentences,
  with_nan,
)

# Each in one program: run eagerly, each operation would be compiled apart.
oaxe = jax.jit(losses.oaxe, static_argnames=('truncation', 'truncation_base', 'pin_eos', 'label_smoothing'))
cross_entropy = jax.jit(losses.cross_entropy)


@pytest.mark.parametrize('seed', range(4))
def test_is_the_least_cross_entropy_of_all_permutations(seed):
  _, _, logits, targets = inputs(seed)
  loss, weight = oaxe(logits, targets, MASK)
  np.testing.assert_allclose(loss, sum(best_order(c) for c in sentences(logits, targets) if len(c)), rtol=1e-5)
  assert weight == LENGTHS.sum() and loss < cross_entropy(logits, targets, MASK)[0]


def test_a_permuted_target_has_the_same_loss():
  _, _, logits, targets = inputs()
  reverse = np.stack([np.r_[np.arange(n)[::-1], np.arange(n, T)] for n in LENGTHS])
  reversed_targets = np.take_along_axis(targets, reverse, axis=1)
  np.testing.assert_allclose(oaxe(logits, reversed_targets, MASK)[0], oaxe(logits, targets, MASK)[0], rtol=1e-5)
  assert abs(cross_entropy(logits, reversed_targets, MASK)[0] - cross_entropy(logits, targets, MASK)[0]) > 0.1


def test_pinned_eos_stays_last():
  _, _, logits, targets = inputs()
  best = lambda c: (best_order(c[:-1, :-1]) if len(c) > 1 else 0.0) + c[-1, -1]
  expected = sum(best(c) for c in sentences(logits, targets) if len(c))
  np.testing.assert_allclose(oaxe(logits, targets, MASK, pin_eos=True)[0], expected, rtol=1e-5)
  assert expected > oaxe(logits, targets, MASK)[0]


def test_gradient_is_that_of_cross_entropy_with_the_permuted_target():
  _, _, logits, targets = inputs()
  nll = np.asarray(jax.jit(position_costs)(logits, targets).nll)
  columns = np.asarray(linear_assignment(nll, LENGTHS))
  pi = 0.2
  keep = MASK * (np.take_along_axis(nll, columns[..., None], axis=2)[..., 0] <= -np.log(pi))
  assert 0 < keep.sum() < MASK.sum()
  for truncation, kept in ((None, MASK), (pi, keep)):
    loss = lambda z, truncation=truncation: oaxe(z, targets, MASK, truncation=truncation)[0]
    expected = lambda z, kept=kept: cross_entropy_at(z, targets, columns, kept)
    chex.assert_trees_all_close(
      *(jax.jit(jax.value_and_grad(f))(logits) for f in (loss, expected)), rtol=1e-6, atol=1e-6
    )
  assert oaxe(logits, targets, MASK, truncation=pi)[1] == LENGTHS.sum()
  direction = np.random.default_rng(9).normal(size=logits.shape).astype(np.float32)
  full = lambda z: oaxe(z, targets, MASK)[0]
  slope = (full(logits + 1e-2 * direction) - full(logits - 1e-2 * direction)) / 2e-2
  np.testing.assert_allclose(slope, np.sum(np.asarray(jax.jit(jax.grad(full))(logits)) * direction), rtol=1e-2)


def test_label_smoothing_is_neither_matched_nor_truncated():
  _, _, logits, targets = inputs()
  mean_nll = np.sum((np.log(np.exp(logits).sum(-1)) - logits.mean(-1)) * MASK)
  plain = oaxe(logits, targets, MASK, truncation=0.2)[0]
  loss = oaxe(logits, targets, MASK, truncation=0.2, label_smoothing=0.1)[0]
  np.testing.assert_allclose(loss, 0.9 * plain + 0.1 * mean_nll, rtol=1e-6)


def test_margins():
  assert truncation_margin(0.15) == pytest.approx(1.897, abs=5e-4)
  assert truncation_margin(0.15, '2') == pytest.approx(2.737, abs=5e-4)
  _, _, logits, targets = inputs()
  base_e, base_2, consistent = (
    oaxe(logits, targets, MASK, truncation=pi, truncation_base=base)[0]
    for pi, base in ((0.2, 'e'), (0.2, '2'), (0.2 ** (1 / np.log(2)), 'e'))
  )
  assert base_e < base_2 == consistent


@pytest.mark.parametrize('softcap', [None, 3.0])
@pytest.mark.parametrize('vocab_chunk', [1, 4, 11, None])
def test_hidden_states_give_the_loss_of_their_logits(vocab_chunk, softcap):
  hidden, matrix, logits, targets = inputs()
  if softcap:
    cap = lambda z: softcap * jnp.tanh(z / softcap)
    logits = cap(logits)
  else:
    cap = lambda z: z
  costs_of = jax.jit(chunked_position_costs, static_argnames=('vocab_chunk', 'softcap'))
  costs = costs_of(hidden, matrix, targets, vocab_chunk=vocab_chunk, softcap=softcap)
  logits = np.asarray(logits)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = -log_p[np.arange(B)[:, None, None], np.arange(T)[None, :, None], targets[:, None, :]]
  np.testing.assert_allclose(costs.nll, expected, atol=1e-5)
  np.testing.assert_allclose(costs.mean_nll, -log_p.mean(axis=-1), atol=1e-5)
  options = {'truncation': 0.1, 'label_smoothing': 0.1, 'pin_eos': True}
  chunked = lambda h, w: chunked_oaxe(h, w, targets, MASK, vocab_chunk=vocab_chunk, softcap=softcap, **options)[0]
  plain = lambda h, w: oaxe(cap(h @ w), targets, MASK, **options)[0]
  both = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, matrix)
  chex.assert_trees_all_close(both(chunked), both(plain), rtol=1e-4, atol=1e-5)


def test_hidden_states_need_no_array_of_the_size_of_the_logits():
  shape = lambda *dims, dtype=jnp.float32: jax.ShapeDtypeStruct(dims, dtype)
  arguments = shape(4, 64, 16), shape(16, 8192), shape(4, 64, dtype=jnp.int32)
  loss = lambda h, w, y: chunked_oaxe(h, w, y, vocab_chunk=512, label_smoothing=0.1)[0]
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * 64 * 8192 * 4 / 2


def test_nothing_left_is_a_finite_loss_without_gradient():
  _, _, logits, targets = inputs()
  unlikely = logits - 50 * np.eye(V, dtype=np.float32)[targets].sum(axis=1, keepdims=True)
  loss = lambda z: oaxe(z, targets, MASK, truncation=0.5)[0]
  value, gradient = jax.jit(jax.value_and_grad(loss))(unlikely)
  assert value == 0 and not np.asarray(gradient).any()
  empty = oaxe(logits, targets, np.zeros_like(MASK))
  assert empty == (0, 0)


@pytest.mark.parametrize('truncation', [None, 0.2])
def test_nan_logits_show_in_the_loss(truncation):
  _, _, logits, targets = inputs()
  loss = functools.partial(oaxe, targets=targets, mask=MASK, truncation=truncation)
  assert np.isnan(loss(with_nan(logits, 1, 2, 3))[0])
  assert np.isfinite(loss(with_nan(logits, 1, 5, 3))[0])  # Padding.


def test_joint_weight_falls_from_one_to_zero():
  for shape in ('exponential', 'linear', 'step'):
    weights = [float(joint_weight(jnp.int32(m), 100, c=1.5, lam=0.4, shape=shape)) for m in range(100)]
    assert weights[0] == pytest.approx(1, abs=1e-6) and not any(weights[40:]) and all(weights[:40])
    assert weights == sorted(weights, reverse=True)
  assert joint_weight(38, 100, c=1.5, lam=0.4) == pytest.approx(1 - 1.5**-2)
  assert joint_weight(10, 100, lam=0.4, shape='linear') == pytest.approx(0.75)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'truncation': 1.0}, r'truncation=1.0 must be a probability within \(0, 1\)'),
    ({'truncation': 0.0}, 'truncation=0.0'),
    ({'truncation_base': '10'}, "truncation_base='10' is not one of e, 2"),
    ({'label_smoothing': 1.0}, 'label_smoothing=1.0'),
    (
      {'targets': jnp.zeros((B, T + 1), jnp.int32)},
      r'logits \(5, 6, 11\) and targets \(5, 7\): expected as many positions',
    ),
  ],
)
def test_wrong_arguments_are_named(change, message):
  _, _, logits, targets = inputs()
  with pytest.raises(ValueError, match=message):
    oaxe(**{'logits': logits, 'targets': targets, 'mask': MASK} | change)


def test_wrong_hidden_states_and_schedules_are_named():
  hidden, matrix, _, targets = inputs()
  with pytest.raises(ValueError, match=r'hidden \(5, 6, 4\) does not fit matrix \(11, 4\)'):
    chunked_oaxe(hidden, matrix.T, targets)
  with pytest.raises(ValueError, match='vocab_chunk=0'):
    chunked_oaxe(hidden, matrix, targets, vocab_chunk=0)
  with pytest.raises(ValueError, match="shape='cosine'"):
    joint_weight(0, 10, shape='cosine')
  with pytest.raises(ValueError, match='c=1.0'):
    joint_weight(0, 10, c=1.0)


def test_devices_agree_with_one():
  hidden, matrix, _, targets = (np.concatenate([x[:4]] * 2) if i != 1 else x for i, x in enumerate(inputs()))
  mask = np.concatenate([MASK[:4]] * 2)
  loss = lambda h, w, y, m: chunked_oaxe(h, w, y, m, vocab_chunk=4, truncation=0.1)[0]
  expected = jax.jit(jax.grad(loss))(hidden, matrix, targets, mask)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('data',))
  rows = jax.P('data')
  sharded = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(rows, jax.P(), rows, rows), out_specs=rows)
  chex.assert_trees_all_close(jax.jit(sharded)(hidden, matrix, targets, mask), expected, rtol=1e-5, atol=1e-6)
  assert hidden.shape == (8, T, D)
