"""The loss of a draft is what its terms say, leaves the target alone, and is the same on any number of devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import losses
from jaxlm.glide_config import GlideConfig, Target
from jaxlm.models import functions, glide, glide_training
from tests.models import init, slow
from tests.trainers.glide.conftest import TARGET
from trainers.glide.config import DistillConfig
from trainers.glide.task import draft_terms
from trainers.step import data_parallel, init_state, make_train_step

CHAIN = GlideConfig(
  Target('target', TARGET), model_dim=12, num_heads=2, mlp_dim=20, block=3, dtype='float32', cross_start='random'
)
VARIANTS = {
  'chain': CHAIN,
  'no cross': CHAIN.replace(cross=False),
  'parallel': CHAIN.replace(draft='parallel'),
  "the target's embedding": CHAIN.replace(embedding='target'),
  'few tokens': CHAIN.replace(embedding='target', vocabulary=30),
}
B, T = 8, 10
target_params = functools.cache(lambda: init(TARGET, jax.random.key(7)))


@functools.cache
def draft_params(config):
  params = jax.jit(glide.init_params, static_argnums=0)(config, jax.random.key(1))
  # New parameters predict nearly the same for all tokens.
  return jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)


def batch():
  rng = np.random.default_rng(0)
  ids = rng.integers(0, TARGET.vocab_size, (B, T + 1)).astype(np.int32)
  mask = (np.arange(T) < rng.integers(3, T + 1, (B, 1))).astype(np.float32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'mask': mask, 'phase': rng.integers(0, 3, B).astype(np.int32)}


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames='compare')
def terms(config, distill, params, target, batch, compare=False):
  return {name: (t.total, t.weight) for name, t in draft_terms(params, target, batch, config, distill, compare=compare).items()}  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def both_logits(config, params, target, batch):
  reads, states = glide_training.target_reads(TARGET, target, batch['tokens'], config.target_layers)
  reads = reads if config.cross else None
  draft = glide_training.training_logits(config, params, batch['tokens'], reads, batch['phase'], target_params=target)
  return draft, functions.logits(target, TARGET, states)


@pytest.mark.parametrize('config', [*slow(*list(VARIANTS.values())[:-1]), VARIANTS['few tokens']], ids=VARIANTS)
def test_terms_are_those_of_the_logits_of_both_models(config):
  params, target, b, distill = draft_params(config), target_params(), batch(), DistillConfig(0.25, 'tv', 0.8)
  q_BTV, p_BTV = both_logits(config, params, target, b)
  found = terms(config, distill, params, target, b, compare=True)
  overlap = lambda t: jnp.minimum(jax.nn.softmax(q_BTV / t), jax.nn.softmax(p_BTV / t)).sum(-1)
  expected = {
    'ce': losses.cross_entropy(
      jnp.maximum(q_BTV, -1e9), b['targets'], predicted := b['mask'] * (b['targets'] < config.num_predicted)
    )[0],
    'tv': ((1 - overlap(0.8)) * b['mask']).sum(),
    'overlap': (overlap(1.0) * b['mask']).sum(),
    'agreement': ((q_BTV.argmax(-1) == p_BTV.argmax(-1)) * b['mask']).sum(),
  }
  chex.assert_trees_all_close({name: total for name, (total, _) in found.items()}, expected, rtol=1e-5, atol=1e-5)
  weights = {name: float(weight) for name, (_, weight) in found.items()}
  assert weights == dict.fromkeys(weights, b['mask'].sum()) | {'ce': predicted.sum()}
  assert (predicted.sum() < b['mask'].sum()) == bool(config.vocabulary)


def test_distillation_in_prompts_counts_all_tokens_before_the_last_target():
  b, distill = batch(), DistillConfig(1.0, prompts=True)
  b['mask'] = b['mask'] * (np.arange(T) >= 2)
  config, whole = VARIANTS['few tokens'], b | {'mask': np.maximum(b['mask'], np.arange(T) < 2)}
  expected = terms(config, distill, draft_params(config), target_params(), whole)
  found = terms(config, distill, draft_params(config), target_params(), b)
  assert float(found['kl'][1]) == whole['mask'].sum() > b['mask'].sum()
  np.testing.assert_allclose(found['kl'][0], expected['kl'][0], rtol=1e-6)


def test_distillation_takes_its_share_of_the_loss():
  def factors(*distill, compare=False):
    found = {}

    def traced(*args):
      found.update(draft_terms(*args, CHAIN, DistillConfig(*distill), compare=compare))

    jax.eval_shape(traced, draft_params(CHAIN), target_params(), batch())  # Factors are known without computing.
    return {name: term.factor for name, term in found.items()}

  assert factors() == {'ce': 1.0} and factors(0.25, 'tv') == {'ce': 0.75, 'tv': 0.25}
  assert factors(1.0) == {'kl': 1.0}
  assert factors(1.0, compare=True) == {'ce': None, 'kl': 1.0, 'agreement': None, 'overlap': None}
  assert factors(compare=True) == {'ce': 1.0, 'agreement': None, 'overlap': None}


@pytest.mark.parametrize(
  'config',
  [
    *slow(*list(VARIANTS.values())[:2]),
    VARIANTS['parallel'],
    *slow(*list(VARIANTS.values())[3:4]),
    VARIANTS['few tokens'],
  ],
  ids=VARIANTS,
)
def test_the_target_gets_no_gradient(config):
  def loss(params, target):
    found = draft_terms(params, target, batch(), config, DistillConfig(0.5))
    return sum(t.total * t.factor for t in found.values())

  of_draft, of_target = jax.jit(jax.grad(loss, argnums=(0, 1)))(draft_params(config), target_params())
  assert not any(np.any(x) for x in jax.tree.leaves(of_target))
  assert all(np.any(x) for x in jax.tree.leaves(of_draft))
  # The draft has none of the target's arrays: what is trained and saved is its own.
  assert not {'embed', 'head'} & set(of_draft) or config.embedding == 'own'


def test_a_step_on_four_devices_is_that_of_one_and_changes_the_draft_alone():
  tx = optax.sgd(0.1)
  loss = lambda p, b, context: draft_terms(p, context.frozen['target'], b, CHAIN, DistillConfig(0.5))
  step = make_train_step(loss, tx)
  frozen = {'target': target_params()}
  state = lambda: init_state(jax.tree.map(jnp.copy, draft_params(CHAIN)), tx)
  one, found = jax.jit(step)(state(), batch(), frozen)
  parts = {name: x.reshape(4, 2, *x.shape[1:]) for name, x in batch().items()}
  four, on_four = data_parallel(step)(state(), parts, frozen)
  chex.assert_trees_all_close((one.params, found), (four.params, on_four), rtol=1e-4, atol=1e-6)
  assert found['loss'] == pytest.approx(0.5 * float(found['ce']) + 0.5 * float(found['kl']), rel=1e-5)
  chex.assert_trees_all_equal(frozen['target'], target_params())
  moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), one.params, draft_params(CHAIN))
  assert all(jax.tree.leaves(moved))
