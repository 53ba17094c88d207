"""The non-autoregressive encoder-decoder is its formula, sees both sides, and padding changes nothing."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import DropoutConfig, to_dict
from jaxlm.models import nat, seq2seq
from jaxlm.seq2seq_config import NatConfig, seq2seq_config
from tests.jaxlm.models import test_seq2seq
from tests.jaxlm.models.test_seq2seq import LENGTHS, SOURCE, TOKENS, B, T, by_hand
from tests.models import slow

CMLM = test_seq2seq.TINY.replace(kind='cmlm', encoder_layers=1, decoder_layers=2)
COPY = CMLM.replace(kind='nat', nat=NatConfig(decoder_input='uniform_copy'))
CTC = CMLM.replace(kind='nat', nat=NatConfig(upsampling=2), position='learned')
TARGET_LENGTHS = jnp.array([5, T])

init = jax.jit(nat.init_params, static_argnums=0)


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config, source, lengths, target_lengths, tokens=None, key=None):
  """Returns (logits, log-probabilities of lengths); without tokens, none of them is known."""
  states, length_log_p = nat.encode(params, config, source, lengths, key)
  memory = seq2seq.memory(params, config, states, lengths)
  inputs = nat.unknown_targets(config, states, lengths, target_lengths, T) if tokens is None else tokens
  return seq2seq.logits(params, config, nat.hidden(params, config, inputs, target_lengths, memory, key)), length_log_p


@functools.cache
def params_of(config, seed=0):
  params = init(config, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


@pytest.mark.parametrize('placement', ['pre', *slow('post')])
def test_logits_and_lengths_are_those_of_the_formula(placement):
  config = CMLM.replace(norm_placement=placement)
  params = params_of(config)
  tokens = TOKENS.at[:, 3].set(config.mask_id)
  found, length_log_p = forward(params, config, SOURCE, LENGTHS, TARGET_LENGTHS, tokens)
  for row in range(B):
    n = int(TARGET_LENGTHS[row])
    logits, states = by_hand(params, config, np.asarray(SOURCE[row, : LENGTHS[row]]), np.asarray(tokens[row, :n]))
    np.testing.assert_allclose(found[row, :n], logits, rtol=2e-4, atol=2e-4)
    scores = np.asarray(params['length_embed']['embedding'], np.float64)[1:] @ states[0]
    np.testing.assert_allclose(length_log_p[row, 1:], scores - np.log(np.exp(scores).sum()), rtol=2e-4, atol=2e-4)
  assert length_log_p.shape == (B, config.max_length + 1) and (length_log_p[:, 0] == -jnp.inf).all()
  assert length_log_p.dtype == jnp.float32


@pytest.mark.parametrize('config', [CMLM, COPY, CTC], ids=['mask', 'copy', 'ctc'])
def test_padding_of_sources_and_targets_changes_nothing(config):
  params = params_of(config)
  tokens = None if config.kind == 'nat' else TOKENS
  found, length_log_p = forward(params, config, SOURCE, LENGTHS, TARGET_LENGTHS, tokens)
  filled = SOURCE.at[1, 4:].set(5)
  other, other_log_p = forward(
    params, config, filled, LENGTHS, TARGET_LENGTHS, None if tokens is None else tokens.at[0, 5:].set(7)
  )
  chex.assert_trees_all_equal((found[0, :5], found[1], length_log_p), (other[0, :5], other[1], other_log_p))
  alone, _ = forward(
    params, config, SOURCE[1:, :4], LENGTHS[1:], TARGET_LENGTHS[1:], None if tokens is None else tokens[1:]
  )
  np.testing.assert_allclose(alone[0], found[1], rtol=1e-4, atol=1e-5)
  changed, changed_log_p = forward(params, config, SOURCE.at[1, 3].set(5), LENGTHS, TARGET_LENGTHS, tokens)
  assert (changed[1] != found[1]).any(axis=-1).all()
  assert (length_log_p is None) == bool(config.nat.upsampling)
  assert length_log_p is None or (changed_log_p[1, 1:] != length_log_p[1, 1:]).any()


def test_every_position_sees_the_tokens_on_both_sides():
  params = params_of(CMLM)
  found, _ = forward(params, CMLM, SOURCE, LENGTHS, TARGET_LENGTHS, TOKENS)
  for place in (0, 3, 4):
    changed, _ = forward(params, CMLM, SOURCE, LENGTHS, TARGET_LENGTHS, TOKENS.at[0, place].set(CMLM.mask_id))
    assert (changed[0, :5] != found[0, :5]).any(axis=-1).all()
    chex.assert_trees_all_equal(changed[1], found[1])


def test_a_uniform_copy_has_the_state_of_the_rounded_place():
  S = 7
  states = jnp.arange(2.0 * S).reshape(2, S, 1)
  for lengths, targets in (([S, 4], [5, T]), ([1, 6], [3, 6]), ([5, 2], [2, 0])):
    found = nat.uniform_copy(states, jnp.array(lengths), jnp.array(targets), T)[..., 0]
    for row, (s, n) in enumerate(zip(lengths, targets)):
      expected = [row * S + min(int(np.floor(i * s / n + 0.5)), s - 1) for i in range(n)]
      assert found[row, :n].tolist() == expected
  chex.assert_trees_all_equal(
    nat.unknown_targets(CMLM, states, jnp.array([1, 2]), jnp.array([1, 2]), 3), jnp.full((2, 3), CMLM.mask_id)
  )


def test_dropout_is_of_training_only():
  config = CMLM.replace(dropout=DropoutConfig(residual=0.3))
  params = params_of(CMLM)
  plain = forward(params, CMLM, SOURCE, LENGTHS, TARGET_LENGTHS, TOKENS)
  chex.assert_trees_all_equal(forward(params, config, SOURCE, LENGTHS, TARGET_LENGTHS, TOKENS), plain)
  keys = jax.random.key(0), jax.random.key(1)
  dropped = [forward(params, config, SOURCE, LENGTHS, TARGET_LENGTHS, TOKENS, key) for key in keys]
  assert abs(dropped[0][0] - dropped[1][0]).max() > 0.1 and abs(dropped[0][1] - dropped[1][1])[:, 1:].max() > 0.1


def test_an_upsampled_decoder_has_positions_for_the_longest_source_and_no_length_classifier():
  params = nat.abstract_params(CTC)
  assert params['position_embed']['embedding'].shape == (2 * CTC.max_length, CTC.model_dim)
  assert params['source_position_embed']['embedding'].shape == (CTC.max_length, CTC.model_dim)
  assert 'length_embed' not in params
  assert nat.abstract_params(CMLM)['length_embed']['embedding'].shape == (CMLM.max_length + 1, CMLM.model_dim)


def test_configs_are_read_back_and_settings_of_another_kind_are_refused():
  assert seq2seq_config(to_dict(COPY)) == COPY
  old = to_dict(test_seq2seq.TINY)
  del old['kind'], old['nat']
  assert seq2seq_config(old) == test_seq2seq.TINY
  for config, changes, message in (
    (CMLM, dict(markov_order=2), "markov_order=2 needs kind='autoregressive': self.kind='cmlm' predicts all"),
    (CMLM, dict(position='relative'), "position='relative' needs kind='autoregressive': self.kind='cmlm' predicts all"),
    (
      CMLM,
      dict(nat=NatConfig(upsampling=2)),
      "upsampling=2.* needs kind='nat': the decoder of kind='cmlm' reads known",
    ),
    (COPY, dict(kind='autoregressive'), "uniform_copy.* needs kind='nat' or 'cmlm', not self.kind='autoregressive'"),
    (CMLM, dict(kind='nap'), "Did you mean 'nat'"),
  ):
    with pytest.raises(ValueError, match=message):
      config.replace(**changes)
  with pytest.raises(ValueError, match='upsampling=-1 must be at least 1 position'):
    NatConfig(upsampling=-1)
