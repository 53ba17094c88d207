"""A model whose sequences go through `flash_attention` is the model that attends densely. On a CPU that is its XLA form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import programs
from jaxlm import caches, models
from jaxlm.attention import cached, flash, mass
from jaxlm.attention.rule import layer_rule
from jaxlm.config import DropoutConfig, RopeConfig, SinkConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models import sharding
from jaxlm.models.transformer import Transformer
from tests.models import TINY, init, slow
from tests.pallas_kernels import lowering
from trainers.next_token import next_token_loss

KNOWN = [
  {},
  {'windows': (5, 0)},
  *slow({'position': 'alibi'}, {'causal': False}),
  {'attention': 'sigmoid', 'attention_offset': 'neg_log_n', 'position': 'alibi', 'windows': (0, 7)},
  *slow(
    {'sink': SinkConfig('token'), 'windows': (0, 7), 'prefix': 1},
    {'sink': SinkConfig('v'), 'rope': RopeConfig(fraction=0.5)},
  ),
  {'sink': SinkConfig('logit'), 'attention_softcap': 0.5, 'prefix': 3, 'windows': (5, 0)},
  *slow({'sink': SinkConfig('kv', shared=True), 'attention': 'sigmoid', 'attention_offset': 'neg_log_n'}),
  {'sink': SinkConfig('k', learned_dims=4), 'attention_softcap': 0.5, 'position': 'alibi', 'prefix': 3},
  {'causal': False, 'attention': 'sigmoid', 'position': 'alibi', 'windows': (3, 0)},
]
UNKNOWN = [
  {'attention': 'sigmoid_norm'},
  {'attention_power': 2.0},
  {'attention_row_sum': 0.5},
  {'position': 'relative_t5'},
]
PROMPTS = [[1, 2, 3, 4, 5], [7, 8, 9]]
TOKENS = jax.random.randint(jax.random.key(0), (2, 24), 0, TINY.vocab_size)
SEGMENTS = jnp.asarray([[1] * 10 + [2] * 14, [1] * 3 + [2] * 15 + [0] * 6])


@pytest.fixture
def through_kernels(monkeypatch):
  """Sends all attention that `flash` knows through it; grows with each layer that is traced so."""
  taken, attend = [], flash.attend
  monkeypatch.setattr(flash, 'is_default', lambda rule, q: flash.knows(rule))
  monkeypatch.setattr(flash, 'attend', lambda *args, **kwargs: taken.append(1) or attend(*args, **kwargs))
  return taken


@pytest.mark.parametrize('changes', KNOWN)
def test_losses_and_gradients_are_the_dense_ones(changes, through_kernels, monkeypatch):
  config = TINY.replace(**changes)
  params = random_slots(init(config, jax.random.key(1)))
  actual = loss_and_gradients(params, config)
  assert through_kernels
  monkeypatch.setattr(flash, 'is_default', lambda rule, q: False)
  expected = loss_and_gradients(params, config)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def random_slots(params):
  """Makes the slots large, so that they take much of the weight."""
  large = lambda path, x: jnp.sin(jnp.arange(x.size)).reshape(x.shape) if 'slot' in str(path[-1]) else x
  return jax.tree_util.tree_map_with_path(large, params)


def loss_and_gradients(params, config):
  """Compiled anew each time: whether attention goes through `flash` is no part of what a program is compiled for."""
  batch = {'tokens': TOKENS, 'targets': TOKENS[:, ::-1], 'mask': jnp.ones(TOKENS.shape), 'segments': SEGMENTS}

  def of_hidden(p):
    hidden_BTD, _ = models.hidden(p, config, TOKENS, cache=caches.Sequence(SEGMENTS))
    log_p_BTV = jax.nn.log_softmax(models.logits(p, config, hidden_BTD))
    return -jnp.take_along_axis(log_p_BTV, batch['targets'][..., None], -1).sum()

  of = (lambda p: next_token_loss(p, batch, config)[0]) if config.causal else of_hidden
  return jax.jit(jax.value_and_grad(of))(params)


@pytest.mark.slow
@pytest.mark.parametrize('kernels', [True, 'gpu'])
@pytest.mark.parametrize('sink', ['kv', 'logit', 'token'])
def test_the_interpreted_kernels_give_the_dense_gradients_too(sink, kernels, monkeypatch):
  config = TINY.replace(sink=SinkConfig(sink), attention_softcap=0.5, prefix=3, windows=(5, 0))
  params = random_slots(init(config, jax.random.key(1)))
  expected, attend = loss_and_gradients(params, config), flash.attend
  interpreted = lambda *args, **kwargs: attend(*args, **kwargs, interpret=kernels, block_q=16, block_k=16)
  monkeypatch.setattr(flash, 'is_default', lambda rule, q: True)
  monkeypatch.setattr(flash, 'attend', interpreted)
  for a, e in zip(jax.tree.leaves(loss_and_gradients(params, config)), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


# Devices for rows, for parameters, and for heads.
MESHES = [dict(data=2, tensor=2), dict(tensor=4), *slow(dict(fsdp=2, tensor=2), dict(data=2, fsdp=2), dict(tensor=3))]


@pytest.mark.parametrize('axes', MESHES, ids=str)
def test_each_device_of_a_mesh_computes_its_rows_and_heads(axes, monkeypatch):
  config = TINY.replace(sink=SinkConfig('kv'), position='alibi', windows=(5, 0))
  params = random_slots(init(config, jax.random.key(1)))
  expected, kernels, shapes = loss_and_gradients(params, config), flash.flash_attention, []

  def interpreted(q, *args, **kwargs):
    shapes.append(q.shape)
    return kernels(q, *args, **kwargs, interpret=True, block_q=16, block_k=16)

  monkeypatch.setattr(flash, 'is_default', lambda rule, q: True)
  monkeypatch.setattr(flash, 'flash_attention', interpreted)
  mesh = sharding.make_mesh(**axes)
  with flash.on_mesh(mesh):
    actual = loss_and_gradients(jax.device_put(params, sharding.tree_shardings(params, mesh)), config)
  # Two rows are shared by two of four devices. Four devices have a query head and a copy of a key head each, three have all.
  rows, heads = 2 if mesh.shape['tensor'] >= 3 else 1, {1: 4, 2: 2, 3: 4, 4: 1}[mesh.shape['tensor']]
  assert {shape[::2] for shape in shapes} == {(rows, heads)}
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('names', [('fsdp', 'tensor'), ('tensor', 'data'), ('data', 'fsdp')])
def test_a_mesh_may_lack_axes(names, monkeypatch):
  shapes = []
  monkeypatch.setattr(flash, 'flash_attention', lambda q, *_, **__: shapes.append(q.shape) or q)
  q = jnp.arange(4 * 8 * 4 * 8.0).reshape(4, 8, 4, 8)
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), names)
  with flash.on_mesh(mesh):
    out = jax.jit(lambda q: flash.attend(q, q, q, layer_rule(TINY, 0)))(
      jax.device_put(q, jax.NamedSharding(mesh, jax.P()))
    )
  assert shapes == [(2, 8, 2, 8) if 'tensor' in names else (1, 8, 4, 8)] and (out == q).all()


def test_a_models_implementation_decides(monkeypatch):
  q = jnp.zeros((1, 256, 4, 8), jnp.bfloat16)
  rule = lambda name, **changes: layer_rule(TINY.replace(implementation=name, **changes), 0)
  assert flash.is_default(rule('pallas'), q[:, :2].astype('float32'))
  assert not cached.is_default(rule('pallas'), q[:, :1])  # The kernel of decoding steps is for TPUs.
  monkeypatch.setattr(flash, 'has_kernels', lambda: True)
  monkeypatch.setattr(flash, 'on_one_device', lambda: True)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert cached.is_default(rule('pallas'), q[:, :1].astype('float32'))
  assert flash.is_default(rule('default'), q) and not flash.is_default(rule('xla'), q)
  assert not mass.is_default(rule('xla'), 256) and not cached.is_default(rule('xla'), q[:, :1])
  with pytest.raises(ValueError, match="the kernels know softmax and sigmoid .*, not sigmoid_norm with .* 'xla'"):
    flash.is_default(rule('pallas', attention='sigmoid_norm'), q)
  with pytest.raises(ValueError, match='not softmax with .* dropout=0.5'):
    flash.check(TINY.replace(implementation='pallas', dropout=DropoutConfig(attention=0.5)))


@pytest.mark.parametrize('name', ['training', 'decoding'])
def test_kernels_that_a_cpu_lacks_are_an_error_that_says_so(name):
  config = TINY.replace(implementation='pallas')
  params = init(TINY, jax.random.key(1))
  with pytest.raises(ValueError, match="implementation='pallas' .*(TPU|tpu)"):
    if name == 'training':
      loss_and_gradients(params, config)
    else:
      decoders.generate(LanguageModel(config, params), PROMPTS, max_new_tokens=2)


def test_a_model_that_is_split_over_devices_reads_prompts_with_kernels(monkeypatch):
  params, kernels, shapes = init(TINY, jax.random.key(1)), flash.flash_attention, []
  generate = lambda params: decoders.generate(LanguageModel(TINY, params), PROMPTS, max_new_tokens=4).rows()

  def interpreted(q, *args, **kwargs):
    shapes.append(q.shape)
    return kernels(q, *args, **kwargs, interpret=True, block_q=16, block_k=16)

  monkeypatch.setattr(flash, 'is_default', lambda rule, q: True)
  monkeypatch.setattr(flash, 'flash_attention', interpreted)
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  split = generate(jax.device_put(params, sharding.tree_shardings(params, mesh)))
  assert {(B, N) for B, _, N, _ in shapes} == {(len(PROMPTS) // 2, TINY.num_heads // 2)}
  # The same shapes on one device, and on other devices, are other programs.
  assert generate(params) == split
  others = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[::-1])
  assert generate(jax.device_put(params, sharding.tree_shardings(params, others))) == split
  monkeypatch.undo()
  programs.forget()
  assert generate(params) == split


@pytest.mark.slow
def test_kernels_of_a_mesh_compile_for_a_tpu_and_gather_nothing():
  mesh = sharding.make_mesh(data=2, tensor=2, devices=lowering.tpu_chips())
  place = jax.NamedSharding(mesh, jax.P('data', None, 'tensor'))
  q, k = (jax.ShapeDtypeStruct((4, 4096, n, 64), 'bfloat16', sharding=place) for n in (32, 8))
  loss = lambda *qkv: flash.attend(*qkv, layer_rule(TINY, 0)).astype(jnp.float32).sum()
  with flash.on_mesh(mesh):
    program = lowering.compiled_for_tpu(jax.grad(loss, argnums=(0, 1, 2)), q, k, k).as_text()
  assert program.count('custom_call_target="tpu_custom_call"') == 3 and 'all-gather' not in program


@pytest.mark.parametrize('changes', [{}, {'prefix': 40, 'windows': (3, 3), 'sink': SinkConfig('token')}])
def test_prompts_are_read_as_densely(changes, through_kernels, monkeypatch):
  """A prefix may be longer than the prompt."""
  config = TINY.replace(**changes)
  params = init(config, jax.random.key(1))

  def read():
    cache = caches.FullCache.create(config, 2, 32)
    return jax.jit(lambda p: Transformer(config).apply({'params': p}, TOKENS, None, cache))(params)

  actual = read()
  assert through_kernels
  monkeypatch.setattr(flash, 'is_default', lambda rule, q: False)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(read())):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('changes', UNKNOWN)
def test_rules_that_the_kernels_do_not_know_are_left_to_xla(changes):
  assert not flash.knows(layer_rule(TINY.replace(**changes), 0))


def test_a_cpu_attends_densely():
  assert not flash.is_default(layer_rule(TINY, 0), jnp.zeros((1, 256, 4, 8), jnp.bfloat16))
