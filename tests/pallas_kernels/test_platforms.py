"""Where kernels run, on stand-ins of devices that this machine does not have."""

import types

import jax
import jax.numpy as jnp
import pytest

from jaxlm.attention import flash
from pallas_kernels import column_mass, flash_attention, platforms
from pallas_kernels.attention import chosen_implementation, default_implementation
from pallas_kernels.attention_calls import Spec

X = jnp.ones((1, 16, 2, 16), jnp.bfloat16)
SPEC = Spec('softmax', causal=True, window=None, scale=1.0, bias=0.0, alibi=False, block_q=None, block_k=None)
GPUS = {
  'T4': types.SimpleNamespace(platform='gpu', device_kind='Tesla T4', compute_capability='7.5'),
  'V100': types.SimpleNamespace(platform='gpu', device_kind='NVIDIA V100-SXM2-16GB', compute_capability='7.0'),
  'A100': types.SimpleNamespace(platform='gpu', device_kind='NVIDIA A100-SXM4-40GB', compute_capability='8.0'),
  'B200': types.SimpleNamespace(platform='gpu', device_kind='NVIDIA B200', compute_capability='10.0'),
  'MI300X': types.SimpleNamespace(platform='gpu', device_kind='AMD Instinct MI300X', compute_capability='gfx942'),
}


@pytest.fixture
def process_with(monkeypatch):
  """Returns a function that makes these GPUs the devices of the process, beside its CPU."""

  def set_devices(*names):
    found, real = [GPUS[name] for name in names], jax.devices
    monkeypatch.setattr(jax, 'devices', lambda kind=None: found if kind in (None, 'gpu') else real(kind))
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(jax, 'device_count', lambda: len(found))

  return set_devices


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


def test_the_cpu_of_the_process_is_no_gpu():
  assert platforms.compute_capability(jax.devices('cpu')[0]) is None
  assert not platforms.gpus() and platforms.default_platform() == 'cpu'
  with jax.default_device(jax.devices('cpu')[1]):
    assert platforms.default_platform() == 'cpu'
