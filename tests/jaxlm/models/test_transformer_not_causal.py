"""A model with causal=False is an encoder: every token sees all of its own segment, and nothing that grows reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from jaxlm import caches, models
from jaxlm.analysis.direction.model import token_losses
from jaxlm.analysis.sink.report import sinks
from jaxlm.config import SinkConfig
from jaxlm.evaluation.likelihood import likelihoods
from jaxlm.io import families
from tests.models import TINY, init, tiny_model
from trainers.config import ConfigError
from trainers.next_token import next_token_loss
from trainers.pretrain.config import PretrainConfig

ENCODER = TINY.replace(causal=False)
TOKENS = jnp.asarray([[3, 1, 4, 5, 9, 2, 6]])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0]])
POSITIONS = jnp.asarray([[0, 1, 2, 0, 1, 0, 0]])


def reach(config, segments=SEGMENTS):
  """Returns [T, T] bool: whether the state after token t depends on token s."""
  params = init(config, jax.random.key(0))
  direction_D = jax.random.normal(jax.random.key(1), (config.model_dim,))

  @jax.jit
  @jax.jacrev
  def gradients(embedding_VD):
    changed = {**params, 'embed': {'embedding': embedding_VD}}
    hidden_BTD, _ = models.hidden(changed, config, TOKENS, POSITIONS, caches.Sequence(jnp.asarray(segments)))
    return hidden_BTD[0] @ direction_D

  return np.asarray(jnp.abs(gradients(params['embed']['embedding'])[:, TOKENS[0]]).max(axis=-1) > 0)


@pytest.mark.parametrize('changes', [{}, {'position': 'relative_t5'}, {'attention': 'sigmoid', 'position': 'alibi'}])
def test_every_token_depends_on_all_of_its_segment_and_on_nothing_else(changes):
  same = SEGMENTS[0][:, None] == SEGMENTS[0][None]
  np.testing.assert_array_equal(reach(ENCODER.replace(**changes)), same)
  np.testing.assert_array_equal(reach(TINY.replace(**changes)), np.tril(same))


def test_a_window_reaches_to_both_sides():
  at = np.arange(7)
  found = reach(ENCODER.replace(num_layers=1, windows=(2,)), segments=np.ones((1, 7), int))
  np.testing.assert_array_equal(found, abs(at[:, None] - at) < 2)


def test_padding_changes_nothing():
  params = init(ENCODER, jax.random.key(0))
  read = jax.jit(lambda tokens, segments: models.hidden(params, ENCODER, tokens, None, caches.Sequence(segments))[0])
  padded = read(TOKENS, jnp.asarray([[1] * 5 + [0] * 2]))
  np.testing.assert_allclose(padded[:, :5], read(TOKENS[:, :5], jnp.ones((1, 5), jnp.int32)), atol=1e-5)


def test_what_reads_token_by_token_refuses_it():
  lm = tiny_model(ENCODER.replace(num_layers=4))
  refused = lambda what: pytest.raises(ValueError, match=f'{what} needs a causal model; this one has causal=False')
  for generate in (decoders.generate, decoders.simlayerkv.generate, decoders.swift.generate):
    with refused('Reading a prompt to generate what follows'):
      generate(lm, [[1, 2, 3]], max_new_tokens=2)
  with refused('Predicting the next token'):
    next_token_loss(lm.params, {'tokens': TOKENS}, ENCODER)
  with refused('A likelihood token by token'):
    likelihoods(lm, [([1, 2], [3])])
  with refused('A loss token by token'):
    token_losses(lm)
  with refused('What attention does to earlier tokens'):
    sinks(lm, np.ones((1, 20), int))
  with pytest.raises(ValueError, match='nearest is llama, without causal=False'):
    families.choose(ENCODER)
  with pytest.raises(ConfigError, match='model.causal=False lets tokens see the next ones'):
    PretrainConfig(model=PretrainConfig().model.replace(causal=False))


@pytest.mark.parametrize('changes', [{'prefix': 2}, {'sink': SinkConfig('token')}])
def test_what_has_a_meaning_in_one_direction_only_is_refused(changes):
  with pytest.raises(ValueError, match='need causal=True'):
    ENCODER.replace(**changes)
