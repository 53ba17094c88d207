"""The order-agnostic losses of the trainer are those of `jaxlm.losses` on masks alone, with their options, weights and metrics."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import losses
from tests.trainers.translate.test_parallel_loss import BATCH, LENGTHS, MODEL, log_p_of, made, params_of, terms_of
from trainers.config import RunConfig
from trainers.translate.config import OrderConfig

TOKENS = float(LENGTHS.sum())
LOSSES = {
  'axe': dict(epsilon_id=MODEL.mask_id, delta=2.0, prediction_mask=BATCH['mask']),
  'oaxe': dict(truncation=0.1, truncation_base='2', pin_eos=True),
  'ngram-oaxe': dict(truncation=0.1, truncation_base='2', pin_eos=True, n=3, mode='block', trunc_unit='token'),
}
FUNCTIONS = {'axe': losses.axe, 'oaxe': losses.oaxe, 'ngram-oaxe': losses.ngram_oaxe}
SETTINGS = OrderConfig(pi=0.1, base='2', pin_eos=True, ngram=3, ngram_mode='block', truncated='token', skip_penalty=2.0)


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('bias', [False, True], ids=['tied', 'bias'])
def test_training_minimises_the_loss_of_its_name_on_masks_alone(name, bias):
  model = MODEL.replace(output_bias=bias)
  params = params_of(model)
  if bias:
    params = params | {'output_bias': jnp.arange(11) / 5}
  log_p, _ = log_p_of(params, model)
  smoothing = {} if name == 'axe' else {'label_smoothing': 0.1}
  expected, weight = FUNCTIONS[name](jnp.asarray(log_p), BATCH['targets'], BATCH['mask'], **LOSSES[name], **smoothing)
  terms = terms_of(params, made(model, loss=name, oaxe=SETTINGS), key=jax.random.key(0))
  assert set(terms) == {name, 'length'}
  np.testing.assert_allclose(terms[name].total, expected, rtol=1e-5)
  assert terms[name].weight == weight == TOKENS and terms[name].factor == 1


def test_evaluation_neither_smooths_nor_truncates_and_measures_the_best_order():
  params = params_of(MODEL)
  nll = -np.take_along_axis(log_p_of(params, MODEL)[0], np.repeat(BATCH['targets'][:, None], 6, axis=1), axis=2)
  best = [
    min(itertools.permutations(range(n)), key=lambda o: nll[row, range(n), o].sum()) for row, n in enumerate(LENGTHS)
  ]
  costs = [nll[row, range(n), best[row]] for row, n in enumerate(LENGTHS)]
  pi = float(np.exp(-np.sort(np.concatenate(costs))[-3:-1].mean()))  # So that two of the tokens are less likely.
  terms = terms_of(params, made(loss='oaxe', oaxe=OrderConfig(pi=pi)))
  np.testing.assert_allclose(terms['oaxe'].total, sum(map(np.sum, costs)), rtol=1e-5)
  np.testing.assert_allclose(
    terms['ce'].total, sum(nll[row, range(n), range(n)].sum() for row, n in enumerate(LENGTHS)), rtol=1e-5
  )
  assert terms['ce'].factor is None and terms['truncated'] == (2, TOKENS, None)
  moved = sum(abs(o - i) for row in best for i, o in enumerate(row))
  assert moved > 0 and terms['displacement'] == (moved, TOKENS, None)


@pytest.mark.parametrize('shape', ['exponential', 'linear', 'step'])
def test_joint_annealing_goes_from_cross_entropy_in_place_to_the_order_loss(shape):
  run = RunConfig(steps=1000)
  config = made(loss='oaxe', oaxe=OrderConfig(joint=shape, joint_until=0.4, joint_base=1.02), run=run)
  params, plain = params_of(MODEL), dataclasses.replace(config, oaxe=OrderConfig())
  found = {step: terms_of(params, config, step, key=jax.random.key(0)) for step in (0, 390, 400, 900)}
  for step, terms in found.items():
    w = losses.joint_weight(step, 1000, 1.02, 0.4, shape)
    np.testing.assert_allclose([terms['ce'].factor, terms['oaxe'].factor], [w, 1 - w], rtol=1e-6)
  assert found[0]['ce'].factor > 0.99 and 0 < found[390]['ce'].factor
  assert found[400]['ce'].factor == found[900]['ce'].factor == 0 and found[900]['oaxe'].factor == 1
  alone = terms_of(params, plain, key=jax.random.key(0))
  assert alone['oaxe'].total == found[0]['oaxe'].total < found[0]['ce'].total and 'ce' not in alone
