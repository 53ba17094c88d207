import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.config import ModelConfig, RopeConfig, model_config, to_dict
from jaxlm.models.transformer import Transformer
from tests.models import TINY, apply, init, slow

VARIANTS = {
  'llama': {},
  'sigmoid': {'attention': 'sigmoid'},
  'mqa, windows': {'num_kv_heads': 1, 'windows': (3, 0)},
  'neox': {'norm': 'layernorm', 'parallel_residual': True, 'gated_mlp': False, 'activation': 'gelu', 'rope': RopeConfig(fraction=0.5)},
  'gpt2': {'norm': 'layernorm', 'position': 'learned', 'gated_mlp': False, 'activation': 'gelu_tanh', 'num_kv_heads': 4,
           'qkv_bias': True, 'out_bias': True, 'mlp_bias': True, 'tied_embeddings': True},
  'no positions, caps, qk norm': {'position': 'none', 'attention_softcap': 2.0, 'logit_softcap': 3.0, 'qk_norm': True},
  'llama3': {'rope': RopeConfig(scaling='llama3', factor=8.0, original_length=16)},
  'yarn': {'rope': RopeConfig(scaling='yarn', factor=4.0, original_length=16)},
  'dynamic': {'rope': RopeConfig(scaling='dynamic', factor=2.0, original_length=4)},
}  # fmt: skip


def tokens_BT(B=3, T=9):
  return jax.random.randint(jax.random.key(1), (B, T), 0, TINY.vocab_size)


RARER = ('neox', 'yarn', 'dynamic')


@pytest.mark.parametrize('name', [name for name in VARIANTS if name not in RARER] + slow(*RARER))
def test_cached_decoding_equals_the_full_forward_pass(name):
  """Ragged: each row is read up to its own length first, then token by token at its own position."""
  config = TINY.replace(**VARIANTS[name])
  params, tokens = init(config, jax.random.key(0)), tokens_BT()
  full, _ = apply(config, params, tokens)
  lengths, total = jnp.asarray([5, 3, 4]), jnp.full(3, tokens.shape[1])
  cache = caches.FullCache.create(config, 3, 16)
  prompt = jnp.where(jnp.arange(5)[None] < lengths[:, None], tokens[:, :5], 7)
  logits, cache = apply(config, params, prompt, cache=cache, length=total)
  for row, n in enumerate(lengths):
    np.testing.assert_allclose(logits[row, :n], full[row, :n], atol=2e-5)
  for step in range(4):
    at = lengths + step
    new = jnp.take_along_axis(tokens, at[:, None], 1)
    logits, cache = apply(config, params, new, at[:, None], cache, total)
    np.testing.assert_allclose(logits[:, 0], full[jnp.arange(3), at], atol=2e-5)


def test_chunked_prefill_equals_one_prefill():
  config = TINY.replace(windows=(4, 0))
  params, tokens = init(config, jax.random.key(0)), tokens_BT(B=2)
  full, _ = apply(config, params, tokens)
  cache = caches.FullCache.create(config, 2, 16)
  parts = []
  for first, last in ((0, 4), (4, 7), (7, 9)):
    positions = jnp.broadcast_to(jnp.arange(first, last), (2, last - first))
    logits, cache = apply(config, params, tokens[:, first:last], positions, cache)
    parts.append(logits)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=2e-5)


def test_future_tokens_have_zero_gradient():
  params = init(TINY, jax.random.key(0))

  def early_logits(embedding):
    changed = {**params, 'embed': {'embedding': embedding}}
    return apply(TINY, changed, jnp.arange(7)[None])[0][0, :4].sum()

  gradient = jax.grad(early_logits)(params['embed']['embedding'])
  assert (jnp.abs(gradient[:4]).max(1) > 0).all() and (gradient[4:] == 0).all()


def test_packed_documents_do_not_see_each_other():
  params = init(TINY, jax.random.key(0))
  a, b = tokens_BT(1, 4), tokens_BT(1, 5) + 0
  packed = jnp.concatenate([a, b], 1)
  segments, positions = jnp.asarray([[1] * 4 + [2] * 5]), jnp.asarray([[*range(4), *range(5)]])
  logits, _ = apply(TINY, params, packed, positions, caches.Sequence(segments))
  alone = [apply(TINY, params, x)[0] for x in (a, b)]
  np.testing.assert_allclose(logits, jnp.concatenate(alone, 1), atol=2e-5)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_memory_not_gradients(remat):
  params = init(TINY, jax.random.key(0))
  gradient = lambda config: jax.jit(
    jax.grad(lambda p: (Transformer(config).apply({'params': p}, tokens_BT())[0] ** 2).sum())
  )(params)
  for x, y in zip(jax.tree.leaves(gradient(TINY)), jax.tree.leaves(gradient(TINY.replace(remat=remat)))):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  config = TINY.replace(dtype='bfloat16')
  params = init(config, jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  logits, _ = apply(config, params, tokens_BT())
  exact, _ = apply(TINY, params, tokens_BT())
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, exact, atol=0.1)
  assert float(jnp.abs(logits - exact).max()) > 0


def test_config_survives_json():
  config = TINY.replace(**VARIANTS['yarn'], windows=(2, 0))
  assert model_config(to_dict(config)) == config
  with pytest.raises(ValueError, match="'num_layer'.*Did you mean 'num_layers'"):
    model_config({'num_layer': 3})


@pytest.mark.parametrize(
  'bad, message',
  [
    ({'num_heads': 6, 'num_kv_heads': 4}, r'num_heads=6 is not a multiple of self.num_kv_heads=4'),
    ({'head_dim': 7}, r'head_dim=7'),
    ({'num_layers': 0}, r'num_layers=0'),
    ({'windows': (-1,)}, r'windows=\(-1,\)'),
    ({'attention_softcap': 0.0}, r'attention_softcap=0.0'),
  ],
)
def test_bad_shapes_are_refused_with_their_numbers(bad, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **bad)


def test_default_config_is_valid():
  assert ModelConfig().rotated_dim == 64
