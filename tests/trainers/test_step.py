"""One step, however it is spread: devices, meshes, micro-batches and uneven padding give the same numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.models.transformer import init_params
from tests.trainers import tiny
from trainers import distributed
from trainers.config import ConfigError, MeshConfig, OptimizerConfig
from trainers.next_token import next_token_loss
from trainers.optimizer import make_optimizer
from trainers.step import Context, Term, init_state, make_train_step, terms

STEPS = 3
PARAMS = jax.jit(lambda: init_params(tiny.MODEL, jax.random.key(1)))


def loss(params, batch, context):
  return next_token_loss(params, batch, tiny.MODEL)


def run(layout, batch=tiny.make_batch, **kwargs):
  """Returns (params, losses, norms) after STEPS steps."""
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0), STEPS)
  init = lambda: init_state(init_params(tiny.MODEL, jax.random.key(1)), optimizer.tx)
  state = layout.create(init)
  step = layout.compile(make_train_step(loss, optimizer.tx, schedule=optimizer.schedule, **kwargs))
  history = []
  for i in range(STEPS):
    state, metrics = step(state, layout.put(batch(i), tiny.B))
    history.append(jax.device_get(metrics))
  assert int(state.step) == STEPS
  return jax.device_get(state.params), [m['loss'] for m in history], [m['grad_norm'] for m in history]


@pytest.fixture(scope='module')
def single():
  return run(distributed.make_layout(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize('mesh', [MeshConfig(), MeshConfig(fsdp=2, tensor=2), MeshConfig(fsdp=4), MeshConfig(tensor=2)])
def test_four_devices_equal_one(single, mesh):
  layout = distributed.make_layout(mesh)
  assert layout.mapped == (mesh == MeshConfig())
  params, losses, norms = run(layout)
  np.testing.assert_allclose(losses, single[1], rtol=1e-6)
  np.testing.assert_allclose(norms, single[2], rtol=1e-5)
  chex.assert_trees_all_close(params, single[0], atol=1e-5)


def test_the_loss_falls_and_padding_is_uneven(single):
  assert single[1][-1] < single[1][0]
  assert len(set(tiny.make_batch(0)['mask'].reshape(4, -1).sum(1))) > 1


@pytest.mark.parametrize('mesh', [MeshConfig(), MeshConfig(fsdp=2, tensor=2)])
def test_micro_batches_equal_the_whole_batch(single, mesh):
  params, losses, _ = run(distributed.make_layout(mesh), accumulate=2)
  np.testing.assert_allclose(losses, single[1], rtol=1e-6)
  chex.assert_trees_all_close(params, single[0], atol=1e-5)


def test_accumulated_gradient_is_the_whole_gradient_to_1e_6():
  params = PARAMS()
  batch = jax.tree.map(jnp.asarray, tiny.make_batch(0))
  keep = optax.sgd(1.0)  # One step of plain descent shows the gradient itself.
  results = [
    jax.jit(make_train_step(loss, keep, accumulate=n))(init_state(params, keep), batch)[0].params for n in (1, 4)
  ]
  chex.assert_trees_all_close(results[0], results[1], atol=1e-6)


def test_rows_that_are_all_padding_change_nothing():
  short = tiny.make_batch(0)
  padded = {name: np.concatenate([x, np.zeros_like(x)]) for name, x in short.items()}
  params, keep = PARAMS(), optax.sgd(1.0)
  step = jax.jit(make_train_step(loss, keep))
  (a, metrics), (b, padded_metrics) = (step(init_state(params, keep), batch) for batch in (short, padded))
  chex.assert_trees_all_close(a.params, b.params, atol=1e-6)
  np.testing.assert_allclose(metrics['loss'], padded_metrics['loss'], rtol=1e-6)


def test_keys_depend_on_the_step_and_terms_without_a_factor_are_reported_only():
  def noisy(params, batch, context):
    weight = jnp.sum(batch['x'])
    noise = jax.random.uniform(context.key)
    return {'main': Term(params['w'] * weight, weight), 'noise': Term(noise * params['w'], jnp.ones(()), None)}

  tx = optax.sgd(0.1)
  step = jax.jit(make_train_step(noisy, tx, seed=3))
  state, noise = init_state({'w': jnp.ones(())}, tx), []
  for _ in range(2):
    state, metrics = step(state, {'x': jnp.ones((4,))})
    noise.append(float(metrics['noise'] / state.params['w']))
  again = init_state({'w': jnp.ones(())}, tx)
  assert abs(noise[0] - noise[1]) > 1e-3
  again, metrics = step(again, {'x': jnp.ones((4,))})
  np.testing.assert_allclose(metrics['noise'] / again.params['w'], noise[0])
  np.testing.assert_allclose(again.params['w'], 1 - 0.1)  # The noise has no part in the gradient.
  assert metrics['loss'] == metrics['main'] == 1.0 and metrics['tokens'] == 4.0


def several(params, batch, context):
  """Two terms of weights that differ between devices and micro-batches; the second grows with the step, towards frozen arrays."""
  x_BD, mask_B = batch['x'], batch['mask']
  near_B = jnp.square(x_BD @ params['w'] - 1)
  far_B = jnp.square(x_BD @ (params['w'] - context.frozen['teacher']))
  return {
    'fit': Term(jnp.sum(near_B * mask_B), jnp.sum(mask_B)),
    'teacher': Term(jnp.sum(far_B * (1 - mask_B)), jnp.sum(1 - mask_B), 0.5 * (1 + context.step)),
  }


@pytest.mark.parametrize('devices, accumulate', [(1, 1), (4, 1), (1, 2), (4, 2)])
def test_each_term_is_divided_by_the_weight_of_the_whole_batch(devices, accumulate):
  rng = np.random.default_rng(0)
  batch = {'x': rng.normal(size=(16, 3)).astype(np.float32), 'mask': (rng.random(16) < 0.7).astype(np.float32)}
  frozen, tx = {'teacher': jnp.asarray([0.3, -0.2, 0.5])}, optax.sgd(0.1)
  layout = distributed.make_layout(MeshConfig(), jax.devices()[:devices])
  step = layout.compile(make_train_step(several, tx, accumulate=accumulate, unit='pairs'))
  params = {'w': jnp.asarray([0.1, 0.2, 0.3])}
  state = layout.create(lambda: init_state(params, tx))

  def whole(params, number):
    fit, teacher = several(params, batch, Context(number, None, frozen)).values()
    return fit.total / fit.weight + 0.5 * (1 + number) * teacher.total / teacher.weight

  for number in range(2):
    expected, gradient = jax.value_and_grad(whole)(params, number)
    state, metrics = step(state, layout.put(batch, 16), layout.place(frozen))
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
    chex.assert_trees_all_close(jax.device_get(state.params), params, rtol=1e-5)
  assert metrics['pairs'] == batch['mask'].sum()
  np.testing.assert_allclose(metrics['loss'], metrics['fit'] + 1.0 * metrics['teacher'], rtol=1e-6)


def test_a_loss_names_its_terms():
  one = Term(jnp.ones(()), jnp.ones(()))
  with pytest.raises(ValueError, match="loss, other .*'loss' is the name of their sum"):
    terms({'loss': one, 'other': one})
  with pytest.raises(ValueError, match='No term of the loss .other. has a factor'):
    terms({'other': one._replace(factor=None)})


def test_keys_are_of_the_seed_the_step_the_device_and_the_micro_batch():
  def noisy(params, batch, context):
    weight = jnp.sum(batch['x'])
    noise = Term(jax.random.uniform(context.key) * weight, weight, None)
    return {'main': Term(jnp.sum(params['w'] * batch['x']), weight), 'noise': noise}

  layout, tx = distributed.make_layout(MeshConfig()), optax.sgd(0.1)
  step = layout.compile(make_train_step(noisy, tx, seed=3, accumulate=2))
  state = layout.create(lambda: init_state({'w': jnp.ones(())}, tx))
  fold = jax.random.fold_in
  for number in range(2):
    state, metrics = step(state, layout.put({'x': np.ones((8,), np.float32)}, 8))
    of_device = lambda d, number=number: fold(fold(jax.random.key(3), number), d)
    noise = [jax.random.uniform(fold(of_device(d), micro)) for d in range(4) for micro in range(2)]
    np.testing.assert_allclose(metrics['noise'], np.mean(noise), rtol=1e-6)


def test_moving_average_follows_the_parameters():
  tx = optax.sgd(1.0)
  step = jax.jit(make_train_step(lambda p, b, k: (p['w'] * b['x'][0], jnp.ones(())), tx, ema_decay=0.75))
  state, _ = step(init_state({'w': jnp.full((), 3.0)}, tx, ema=True), {'x': jnp.full((1,), 2.0)})
  np.testing.assert_allclose(state.params['w'], 1.0)
  np.testing.assert_allclose(state.ema['w'], 0.75 * 3.0 + 0.25 * 1.0)


def test_batches_and_meshes_that_do_not_fit_name_what_does():
  layout = distributed.make_layout(MeshConfig())
  with pytest.raises(ConfigError, match=r'10 rows.*4 devices.*8 or 12'):
    layout.check_batch_size(10)
  with pytest.raises(ConfigError, match=r'2 rows.*4 devices x 2 micro-batches.*: 8'):
    layout.check_batch_size(2, accumulate=2)
  with pytest.raises(ConfigError, match=r'mesh.fsdp=3 .* 4 devices.*\[1, 2, 4\]'):
    distributed.make_layout(MeshConfig(fsdp=3))
