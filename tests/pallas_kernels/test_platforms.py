"""Where kernels run, on stand-ins of devices that this machine does not have."""

import functools
import re
import types

import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention import flash
from pallas_kernels import column_mass, flash_attention, platforms
from pallas_kernels.attention import chosen_implementation, default_implementation
from pallas_kernels.attention_calls import Spec
from pallas_kernels.attention_checks import cudnn_missing
from tests.pallas_kernels.lowering import CALLS, lowered

X = jnp.ones((1, 16, 2, 16), jnp.bfloat16)
SPEC = Spec('softmax', causal=True, window=None, scale=1.0, bias=0.0, alibi=False, block_q=None, block_k=None)
GPUS = {
  'T4': types.SimpleNamespace(platform='gpu', device_kind='Tesla T4', compute_capability='7.5'),
  'V100': types.SimpleNamespace(platform='gpu', device_kind='NVIDIA V100-SXM2-16GB', compute_capability='7.0'),
  'A100': types.SimpleNamespace(platform='gpu', device_kind='NVIDIA A100-SXM4-40GB', compute_capability='8.0'),
  'B200': types.SimpleNamespace(platform='gpu', device_kind='NVIDIA B200', compute_capability='10.0'),
  'MI300X': types.SimpleNamespace(platform='gpu', device_kind='AMD Instinct MI300X', compute_capability='gfx942'),
}
CUDNN = types.SimpleNamespace(cudnn_get_version=lambda: 91100)


@pytest.fixture
def process_with(monkeypatch):
  """Returns a function that makes these GPUs the devices of the process, beside its CPU."""

  def set_devices(*names):
    found, real = [GPUS[name] for name in names], jax.devices
    monkeypatch.setattr(jax, 'devices', lambda kind=None: found if kind in (None, 'gpu') else real(kind))
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax, 'device_count', lambda: len(found))
    monkeypatch.setattr(fused_attention_stablehlo, 'cuda_versions', CUDNN)
    cudnn_missing.cache_clear()

  yield set_devices
  cudnn_missing.cache_clear()


@pytest.mark.parametrize(
  'gpu, kernels, default, chosen',
  [
    ('T4', False, 'xla', 'xla'),
    ('V100', False, 'xla', 'xla'),
    ('A100', True, 'cudnn', 'cudnn'),
    ('B200', True, 'cudnn', 'cudnn'),
    ('MI300X', True, None, 'pallas'),
  ],
)
def test_gpus_before_ampere_have_no_kernels(process_with, gpu, kernels, default, chosen):
  process_with(gpu)
  assert flash.has_kernels() is kernels
  assert default_implementation(SPEC, X, X) == default
  assert chosen_implementation(SPEC, X, X) == chosen


def test_the_oldest_gpu_of_a_process_decides(process_with):
  process_with('A100', 'T4')
  assert default_implementation(SPEC, X, X) == 'xla'


def test_a_program_for_an_old_gpu_has_no_kernel(process_with):
  sigmoid = lambda x: flash_attention(x, x, x, operation='sigmoid')
  program = lambda: jax.make_jaxpr(lambda x: sigmoid(x))(X)
  assert 'pallas_call' in str(program())
  process_with('T4')
  assert 'pallas_call' not in str(program())


@pytest.mark.parametrize('implementation', ['pallas', 'cudnn'])
def test_explicit_kernels_name_the_capability(process_with, implementation):
  process_with('T4')
  attend = lambda x: flash_attention(x, x, x, implementation=implementation)
  message = f"implementation='{implementation}' needs compute capability 8.0, and Tesla T4 has 7.5"
  with pytest.raises(ValueError, match=message):
    jax.make_jaxpr(attend)(X)
  with pytest.raises(ValueError, match="implementation='pallas' needs compute capability 8.0"):
    jax.make_jaxpr(lambda x: column_mass(x, x, implementation='pallas'))(X)


def test_arrays_on_an_old_gpu_are_refused_by_their_device(monkeypatch):
  monkeypatch.setattr(platforms, '_default_device', lambda: GPUS['V100'])
  with pytest.raises(ValueError, match='needs compute capability 8.0, and NVIDIA V100-SXM2-16GB has 7.0'):
    platforms.require(('tpu', 'gpu'), 0.0)
  monkeypatch.setattr(platforms, '_default_device', lambda: GPUS['A100'])
  platforms.require(('tpu', 'gpu'), 0.0)


def loss(implementation=None):
  attend = functools.partial(flash_attention, implementation=implementation)
  return lambda q, k, v: (attend(q, k, v).astype(jnp.float32) ** 2).sum()


def test_cudnn_is_for_programs_of_the_gpu(process_with):
  process_with('A100')
  assert set(re.findall(r'@__cudnn\$(\w+)', lowered(loss(), 'cuda', X, X, X))) == {'fmhaSoftmax'}
  gradients = jax.grad(loss(), argnums=(0, 1, 2))
  programs = lowered(gradients, 'cuda', X, X, X), lowered(jax.checkpoint(gradients), 'cuda', X, X, X)
  for program in programs:
    assert re.findall(r'@__cudnn\$(\w+)', program) == ['fmhaSoftmax', 'fmhaSoftmaxBackward']
    assert CALLS['cuda'] not in program


@pytest.mark.parametrize('jit', [jax.jit, lambda f: f], ids=['jit', 'eager'])
def test_programs_of_the_cpu_of_a_gpu_process_attend_in_xla(process_with, jit):
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.normal(size=(2, 40, n, 16)), jnp.bfloat16) for n in (4, 2, 2)]
  expected = jax.jit(jax.value_and_grad(loss('xla'), argnums=(0, 1, 2)))(*arrays)
  process_with('A100')
  actual = jit(jax.value_and_grad(loss(), argnums=(0, 1, 2)))(*arrays)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(np.float32(a), np.float32(e), rtol=2e-2, atol=2e-2)


def test_the_branch_of_cudnn_keeps_nothing_more_for_the_gradient(process_with):
  process_with('A100')
  kept = jax.eval_shape(lambda *qkv: jax.vjp(flash_attention, *qkv)[1], X, X, X)
  shapes = sorted(x.shape for x in jax.tree.leaves(kept) if x.size > 1)
  assert shapes == sorted([X.shape] * 4 + [(1, 2, 16)])  # q, k, v, the output and the log-sum-exp.


def test_without_cudnn_the_default_is_the_kernels(process_with, monkeypatch):
  process_with('A100')
  monkeypatch.setattr(fused_attention_stablehlo, 'cuda_versions', None)
  assert default_implementation(SPEC, X, X) is None
  with pytest.raises(ValueError, match='does not run in this process: cuDNN is not detected'):
    jax.make_jaxpr(lambda x: flash_attention(x, x, x, implementation='cudnn'))(X)


def test_cudnn_is_not_for_a_cpu():
  attend = functools.partial(flash_attention, implementation='cudnn')
  with pytest.raises(ValueError, match="implementation='cudnn' runs on gpu, and the arrays are on cpu"):
    attend(X, X, X)
  with pytest.raises(ValueError, match='does not run in this process: cuDNN is not detected'):
    jax.jit(attend)(X, X, X)


def test_the_cpu_of_the_process_is_no_gpu():
  assert platforms.compute_capability(jax.devices('cpu')[0]) is None
  assert not platforms.gpus() and platforms.default_platform() == 'cpu'
  with jax.default_device(jax.devices('cpu')[1]):
    assert platforms.default_platform() == 'cpu'
