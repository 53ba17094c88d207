"""Schedules at their key steps, weight decay and clipping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trainers import tiny
from trainers.config import OptimizerConfig, RunConfig, TrainConfig
from trainers.optimizer import decay_mask, make_optimizer, make_schedule


@pytest.mark.parametrize(
  'schedule, expected',
  [
    ('constant', {0: 0.0, 5: 0.5, 10: 1.0, 60: 1.0, 110: 1.0}),
    ('linear', {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.6, 110: 0.2}),
    ('cosine', {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.6, 35: 0.2 + 0.8 * (1 + 0.5**0.5) / 2, 110: 0.2}),
    ('wsd', {0: 0.0, 5: 0.5, 10: 1.0, 88: 1.0, 99: 0.6, 110: 0.2}),
    ('inverse_sqrt', {0: 0.0, 5: 0.5, 10: 1.0, 40: 0.5, 90: 1 / 3}),
  ],
)
def test_schedule_at_key_steps(schedule, expected):
  config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10, min_lr_ratio=0.2, decay_fraction=0.2)
  rate = make_schedule(config, 110)
  np.testing.assert_allclose([rate(s) for s in expected], list(expected.values()), rtol=1e-5, atol=1e-7)


def test_no_warmup_starts_at_the_peak():
  for schedule in ('constant', 'inverse_sqrt'):
    config = OptimizerConfig(learning_rate=0.3, warmup_steps=0, schedule=schedule)
    assert make_schedule(config, 10)(0) == pytest.approx(0.3)


def test_weight_decay_reaches_all_parameters_unless_exempt():
  from jaxlm.models.transformer import abstract_params

  params = abstract_params(tiny.MODEL.replace(qkv_bias=True))
  assert all(jax.tree.leaves(decay_mask(OptimizerConfig(), params)))
  mask = decay_mask(OptimizerConfig(decay_exempt=('norm', 'bias', 'embedding')), params)
  layer = mask['layer_0']
  assert not mask['embed']['embedding'] and not mask['final_norm']['scale'] and not layer['attention']['q']['bias']
  assert layer['attention']['q']['kernel'] and layer['mlp']['down']['kernel'] and mask['head']


def test_a_learning_rate_of_its_own_multiplies_the_update_and_leaves_the_state_alone():
  params = {'cross': {'o': {'kernel': jnp.ones(3)}}, 'across': {'o': {'kernel': jnp.ones(3)}}}
  config = OptimizerConfig(warmup_steps=0)
  plain, mixed = (make_optimizer(config, 10, factors).tx for factors in ((), (('cross/o/kernel', 0.25),)))
  (before, state), (after, other) = (tx.update(params, tx.init(params), params) for tx in (plain, mixed))
  np.testing.assert_array_equal(after['cross']['o']['kernel'], 0.25 * before['cross']['o']['kernel'])
  np.testing.assert_array_equal(after['across']['o']['kernel'], before['across']['o']['kernel'])
  chex.assert_trees_all_equal(state, other)


def test_decay_and_clipping_are_applied():
  params = {'w': jnp.full((4,), 2.0)}
  zero = {'w': jnp.zeros((4,))}
  config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
  tx = make_optimizer(config, 10).tx
  updates, _ = tx.update(zero, tx.init(params), params)
  np.testing.assert_allclose(updates['w'], -0.1 * 0.5 * 2.0)
  # Adam's first moment of a gradient of norm 6, clipped to norm 1.
  _, state = tx.update({'w': jnp.full((4,), 3.0)}, tx.init(params), params)
  mu = [x for path, x in jax.tree_util.tree_leaves_with_path(state) if 'mu' in jax.tree_util.keystr(path)]
  np.testing.assert_allclose(mu[0], 0.1 * 0.5, rtol=1e-5)


def test_settings_that_cannot_work_name_both_numbers():
  with pytest.raises(ValueError, match='warmup_steps=100 is more than run.steps=10'):
    TrainConfig(run=RunConfig(steps=10))
  with pytest.raises(ValueError, match='beta2=1'):
    OptimizerConfig(beta2=1.0)
