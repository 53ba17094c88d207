"""Dropout in the whole model: where it is, when it is off, and that a backward pass that recomputes draws the same masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.attention import attend, flash
from jaxlm.config import DropoutConfig, model_config, to_dict
from jaxlm.models import blocks
from tests.models import TINY, init
from trainers.next_token import next_token_loss

DROPPING = TINY.replace(dropout=DropoutConfig(residual=0.2, attention=0.3, mlp=0.4))
TOKENS = jax.random.randint(jax.random.key(0), (2, 8), 0, TINY.vocab_size)
BATCH = {'tokens': TOKENS, 'targets': TOKENS[:, ::-1], 'mask': jnp.ones(TOKENS.shape)}
KEY = jax.random.key(7)


@pytest.fixture(scope='module')
def params():
  return init(TINY, jax.random.key(1))


def program(params, config, key):
  return str(jax.make_jaxpr(jax.grad(lambda p: next_token_loss(p, BATCH, config, key)[0]))(params))


def test_without_a_rate_or_a_key_the_program_is_the_same(params):
  plain = program(params, TINY, None)
  assert program(params, TINY, KEY) == plain == program(params, DROPPING, None)
  assert program(params, DROPPING, KEY) != plain


@pytest.mark.parametrize('place', ['residual', 'attention', 'mlp'])
def test_each_rate_changes_the_loss_with_each_key(params, place):
  config = TINY.replace(dropout=DropoutConfig(**{place: 0.5}))
  losses = jax.jit(jax.vmap(lambda key: next_token_loss(params, BATCH, config, key)[0]))(jax.random.split(KEY, 4))
  assert len({*np.asarray(losses).tolist(), float(next_token_loss(params, BATCH, TINY)[0])}) == 5


def test_every_place_of_every_layer_has_a_mask_of_its_own(params, monkeypatch):
  taken = []

  def noted(x, rate, key):
    taken.append((rate, x.shape[-1], jax.random.key_data(key)))
    return x

  monkeypatch.setattr(blocks, 'dropped', noted)
  monkeypatch.setattr(attend, 'dropped', noted)

  def keys_of(key):
    taken.clear()
    models.hidden(params, DROPPING, TOKENS, key=key)
    return [key for *_, key in taken]

  drawn = np.asarray(jnp.stack(jax.jit(keys_of)(KEY)))
  layer = [(0.3, 8), (0.2, 24), (0.4, 20), (0.2, 24)]  # attention weights, what attention adds, MLP, what the MLP adds
  assert [(rate, width) for rate, width, _ in taken] == [(0.2, 24), *layer, *layer]
  assert len(np.unique(drawn, axis=0)) == len(taken)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_what_the_backward_pass_recomputes_is_dropped_the_same(params, remat):
  gradient = lambda config: jax.jit(jax.value_and_grad(lambda p: next_token_loss(p, BATCH, config, KEY)[0]))(params)
  for x, y in zip(jax.tree.leaves(gradient(DROPPING)), jax.tree.leaves(gradient(DROPPING.replace(remat=remat)))):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_kernels_are_left_out_where_weights_are_dropped(params, monkeypatch):
  """They never see the weights. In evaluation, and where other numbers are dropped, they attend as before."""
  taken, attend_there = [], flash.attend
  monkeypatch.setattr(flash, 'is_default', lambda rule, q: flash.knows(rule))
  monkeypatch.setattr(flash, 'attend', lambda *args, **kwargs: taken.append(1) or attend_there(*args, **kwargs))

  def layers_through_kernels(config, key):
    taken.clear()
    jax.eval_shape(lambda p: next_token_loss(p, BATCH, config, key), params)
    return len(taken)

  assert layers_through_kernels(DROPPING, KEY) == 0
  assert layers_through_kernels(DROPPING, None) == 2
  assert layers_through_kernels(TINY.replace(dropout=DropoutConfig(residual=0.2, mlp=0.4)), KEY) == 2


def test_rates_survive_json_and_are_shares():
  assert model_config(to_dict(DROPPING)) == DROPPING
  before = {
    name: value for name, value in to_dict(TINY).items() if name not in ('dropout', 'init', 'init_std', 'causal')
  }
  assert model_config(before) == TINY
  for rate in (-0.1, 1.0, float('nan')):
    with pytest.raises(ValueError, match=rf'dropout.mlp={rate} must be within \[0, 1\)'):
      DropoutConfig(mlp=rate)
