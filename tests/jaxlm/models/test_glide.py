"""The draft's cross-attention: the target's rotation, heads and scale; and its parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention import positions as rope
from jaxlm.caches import LayeredCache, Sequence, Slots
from jaxlm.config import RopeConfig, SinkConfig
from jaxlm.glide_config import with_target
from jaxlm.language_model import LanguageModel
from jaxlm.models import glide
from tests.glide_drafts import SMALL, TARGET, init, tiny_draft
from tests.models import tiny_model

B, T, S = 2, 3, 9
SCALED = RopeConfig(theta=500000.0, scaling='llama3', factor=4.0, original_length=32)


def crossed(target, base, shift, seen=None):
  return _crossed(target, base, tiny_draft(target).params['layer_0']['cross'], shift, seen)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _crossed(target, base, params, shift, seen):
  """Returns what a query of the draft reads of the target's tokens, all of them `shift` positions later.

  Args:
    target: config of the target that the draft knows.
    base: RoPE settings by which the keys are really rotated.
  """
  config = tiny_draft(target).config
  t, keys = target.replace(rope=base), jax.random.split(jax.random.key(0), 3)
  k_BSKH, v_BSKH = (jax.random.normal(key, (B, S, t.num_kv_heads, t.head_dim)) for key in keys[:2])
  at_BS = jnp.broadcast_to(jnp.arange(S) + shift, (B, S))
  k_BSKH = rope.rotate(k_BSKH, *rope.rope_tables(t, at_BS, 64))
  heads_first = lambda x: x.transpose(0, 2, 1, 3)
  memory = Slots(heads_first(k_BSKH), heads_first(v_BSKH), at_BS, jnp.zeros(B, jnp.int32))
  x_BTD = jax.random.normal(keys[2], (B, T, config.model_dim))
  at_BT = jnp.broadcast_to(jnp.arange(T) + S + shift, (B, T))
  seen_BT = jnp.full((B, T), S + shift) if seen is None else seen
  reads, rotations = LayeredCache((None, None, memory)), rope.rotations(target, at_BT, 64)
  return glide.Cross(config, 2).apply({'params': params}, x_BTD, rotations, seen_BT, reads), (x_BTD, memory, params)


@pytest.mark.parametrize('base', [TARGET.rope, SCALED], ids=['theta', 'llama3'])
def test_scores_depend_on_distances_alone_with_the_targets_rotation(base):
  target = TARGET.replace(rope=base)
  here, later = (crossed(target, base, shift)[0] for shift in (0, 37))
  np.testing.assert_allclose(here, later, atol=1e-5)
  # The base of the authors' code.
  wrong = [crossed(TARGET.replace(rope=RopeConfig()), base, shift)[0] for shift in (0, 37)]
  assert np.abs(wrong[0] - wrong[1]).max() > 1e-3


def test_cross_attention_is_the_formula():
  """One head after the other, with the keys of its group and the scale of the target's heads."""
  out, (x_BTD, memory, params) = crossed(TARGET, TARGET.rope, 0)
  q = jnp.einsum('btd,dnh->btnh', x_BTD, params['q']['kernel'])
  q = rope.rotate(q, *rope.rope_tables(TARGET, jnp.broadcast_to(jnp.arange(T) + S, (B, T)), 64))
  group, heads = TARGET.num_heads // TARGET.num_kv_heads, []
  for n in range(TARGET.num_heads):
    scores = jnp.einsum('bth,bsh->bts', q[:, :, n], memory.keys[:, n // group]) / TARGET.head_dim**0.5
    heads.append(jax.nn.softmax(scores, axis=-1) @ memory.values[:, n // group])
  expected = jnp.einsum('btnh,nhd->btd', jnp.stack(heads, axis=2), params['o']['kernel'])
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_query_that_sees_nothing_reads_zero():
  out, _ = crossed(TARGET, TARGET.rope, 0, seen=jnp.asarray([[0, 1, 2], [0, 0, 9]]))
  assert (out[0, 0] == 0).all() and (out[1, :2] == 0).all() and (out[0, 1:] != 0).any() and (out[1, 2] != 0).any()


def test_parameters_are_those_of_the_options_and_never_the_targets():
  names = lambda **changes: {
    '/'.join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract(**changes))
  }
  abstract = lambda **changes: glide.abstract_params(with_target(SMALL.replace(**changes), tiny_model(TARGET), 'tiny'))
  plain = names()
  assert {'embed/embedding', 'head', 'layer_0/cross/q/kernel', 'layer_0/cross/o/kernel'} <= plain
  assert plain - names(cross=False) == {'layer_0/cross/q/kernel', 'layer_0/cross/o/kernel'}
  assert names(cross_norm=True) - plain == {'layer_0/cross_norm/scale'}
  assert names(draft='parallel') - plain == {'mask_embedding'}
  assert names(layers=(2, 0)) - plain == {'layer_0/cross_1/q/kernel', 'layer_0/cross_1/o/kernel'}
  tied = names(embedding='target')
  assert tied - plain == {'embed_in/kernel', 'embed_out/kernel'} and plain - tied == {'embed/embedding', 'head'}
  shapes = abstract()['layer_0']['cross']
  assert shapes['q']['kernel'].shape == (18, 4, 8) and shapes['o']['kernel'].shape == (4, 8, 18)


def test_equal_widths_begin_in_the_targets_embedding_space():
  config = with_target(SMALL.replace(embedding='target', model_dim=24), tiny_model(TARGET), 'tiny')
  params = init(config, jax.random.key(0))
  assert (params['embed_in']['kernel'] == jnp.eye(24)).all()
  assert params['embed_out']['kernel'].std() > 0 and not (params['embed_out']['kernel'] == jnp.eye(24)).all()


def test_the_targets_embedding_needs_its_parameters():
  config = with_target(SMALL.replace(embedding='target'), LanguageModel(TARGET, None), 'tiny')
  with pytest.raises(ValueError, match='needs the parameters of its target: pass target_params'):
    glide.output_matrix(config, {})


def test_a_sink_token_moves_the_targets_positions_and_changes_no_distance():
  """A window hides the sink token, and the draft then computes the same with it and without it."""
  states = []
  for kind in ('none', 'token'):
    target = TARGET.replace(sink=SinkConfig(kind))
    draft, shift = tiny_draft(target, window=4), int(kind == 'token')
    assert glide.num_before(draft.config) == shift
    states.append(read_with(draft.config, draft.params, shift))
  np.testing.assert_allclose(*states, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 2))
def read_with(config, params, shift):
  k_BSKH, v_BSKH = (jax.random.normal(jax.random.key(i), (B, S, 2, 8)) for i in range(2))
  at_BS = jnp.broadcast_to(jnp.arange(S) + shift, (B, S))
  k_BSKH = rope.rotate(k_BSKH, *rope.rope_tables(TARGET, at_BS, 64))
  memory = Slots(k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3), at_BS, jnp.zeros(B, jnp.int32))
  tokens_BT, at_BT = jnp.asarray([[3, 1, 4], [1, 5, 9]]), jnp.broadcast_to(jnp.arange(T) + S, (B, T))
  reads = LayeredCache((None, None, memory))
  return glide.hidden(config, params, tokens_BT, at_BT, jnp.full((B, T), S), Sequence(), reads, length=64)[0]


def test_a_draft_of_few_tokens_predicts_those_with_the_smallest_ids():
  config = with_target(SMALL.replace(vocabulary=40), LanguageModel(TARGET, None), 'tiny')
  states, target_params = np.ones((1, 24), np.float32), arrays_of_target(TARGET)
  found = np.asarray(glide.logits(config.replace(embedding='target'), {}, states, target_params))
  np.testing.assert_allclose(found[:, :40], states @ target_params['head'][:, :40], rtol=1e-5)
  assert found.shape == (1, 50) and (found[:, 40:] == -np.inf).all()
  assert glide.abstract_params(config)['head'].shape == (18, 40)


def arrays_of_target(target):
  """Returns the parameters of a target that a draft with its embedding uses."""
  rng, V, D = np.random.default_rng(0), target.vocab_size, target.model_dim
  drawn = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {'embed': {'embedding': drawn(V, D)}, 'head': drawn(D, V)}


def test_a_softcap_of_the_target_belongs_to_its_output_layer():
  target = dataclasses.replace(TARGET, logit_softcap=2.0)
  own = with_target(SMALL, LanguageModel(target, None), 'tiny')
  config, states = own.replace(embedding='target'), 100 * np.ones((1, target.model_dim), np.float32)
  capped = np.abs(glide.logits(config, {}, states, arrays_of_target(target)))
  assert 1.9 < capped.max() <= 2.0 and config.logit_softcap == 2.0
  assert own.logit_softcap is None
