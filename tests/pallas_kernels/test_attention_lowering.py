"""The kernels lower for TPU and GPU on a machine that has neither, and compile for a TPU where its compiler is installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import flash_attention
from tests.pallas_kernels.lowering import CALLS, compiled_for_tpu, lowered


@pytest.mark.parametrize('platform', CALLS)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float16'])
@pytest.mark.parametrize('operation, kernels', [('sigmoid', 2), ('softmax', 3)])
def test_lowers_without_the_device(platform, dtype, operation, kernels):
  q = jax.ShapeDtypeStruct((2, 300, 4, 96), dtype)
  k = jax.ShapeDtypeStruct((2, 400, 2, 96), dtype)
  attend = functools.partial(flash_attention, operation=operation, window=77, bias=0.3, alibi_slopes=jnp.ones(4))
  assert lowered(attend, platform, q, k, k).count(CALLS[platform]) == 1
  # Softmax's gradient needs the forward pass, for its output and log-sum-exp; sigmoid's does not.
  gradients = jax.grad(lambda *qkv: attend(*qkv).astype(jnp.float32).sum(), argnums=(0, 1, 2))
  assert lowered(gradients, platform, q, k, k).count(CALLS[platform]) == kernels


# Llama 1B, also on packed documents, Gemma 3, and a context of 128k tokens.
MODELS = {
  'llama': (8192, 32, 8, 64, {}),
  'packed': (8192, 32, 8, 64, {'segments': np.repeat(np.arange(8, dtype=np.int32), 1024)[None]}),
  'gemma': (8192, 8, 4, 256, {'softcap': 50.0, 'window': 1024}),
  'long': (131072, 32, 8, 128, {}),
}


@pytest.mark.parametrize('model', MODELS)
def test_the_shapes_of_models_lower_for_a_tpu(model):
  T, N, K, H, options = MODELS[model]
  q, k = (jax.ShapeDtypeStruct((1, T, n, H), 'bfloat16') for n in (N, K))
  loss = lambda q, k, v: flash_attention(q, k, v, **options).astype(jnp.float32).sum()
  assert lowered(jax.grad(loss, argnums=(0, 1, 2)), 'tpu', q, k, k).count(CALLS['tpu']) == 3


@pytest.mark.slow
@pytest.mark.parametrize('model', MODELS)
def test_the_shapes_of_models_compile_for_a_tpu(model):
  T, N, K, H, options = MODELS[model]
  q, k = (jax.ShapeDtypeStruct((1, T, n, H), 'bfloat16') for n in (N, K))
  key = jax.ShapeDtypeStruct((K, H), 'float32')

  def loss(q, k, v, key, value):
    return flash_attention(q, k, v, slot_key=key, slot_value=value, **options).astype(jnp.float32).sum()

  program = compiled_for_tpu(jax.grad(loss, argnums=range(5)), q, k, k, key, key)
  # Far below the weights, 4 N T T. With lse and delta as columns it would be more than 4 of these.
  column = 4 * N * T * 128
  assert program.memory_analysis().temp_size_in_bytes < 3 * column


@pytest.mark.parametrize('platform', CALLS)
def test_prefix_softcap_and_slot_lower_too(platform):
  q, key, segments = ((2, 300, 4, 80), 'bfloat16'), ((4, 80), 'float32'), ((2, 300), 'int32')
  arrays = [jax.ShapeDtypeStruct(*x) for x in (q, q, q, key, key, segments)]
  options = {'prefix': 130, 'window': 40, 'softcap': 20.0}

  def loss(q, k, v, key, value, segments):
    out = flash_attention(q, k, v, segments=segments, slot_key=key, slot_value=value, **options)
    return out.astype(jnp.float32).sum()

  assert lowered(jax.grad(loss, argnums=range(5)), platform, *arrays).count(CALLS[platform]) == 3


@pytest.mark.parametrize('platform', CALLS)
def test_segments_lower_too(platform):
  q, segments = jax.ShapeDtypeStruct((2, 300, 4, 64), 'bfloat16'), jax.ShapeDtypeStruct((2, 300), 'int32')
  loss = lambda q, k, v, s: flash_attention(q, k, v, segments=s).astype(jnp.float32).sum()
  assert lowered(jax.grad(loss, argnums=(0, 1, 2)), platform, q, q, q, segments).count(CALLS[platform]) == 3


def test_a_cpu_has_no_kernel_to_compile():
  x = jnp.ones((1, 16, 1, 16))
  call = functools.partial(flash_attention, implementation='pallas')
  with pytest.raises(ValueError, match="'pallas' runs on tpu and gpu, and the arrays are on cpu"):
    call(x, x, x)
  gradient = jax.grad(lambda *qkv: call(*qkv).sum())
  batched = jax.vmap(lambda x: call(x[None], x[None], x[None]))
  for program, arrays in ((call, (x, x, x)), (gradient, (x, x, x)), (batched, (x,))):
    with pytest.raises(ValueError, match="'pallas' runs on tpu and gpu, and this program is compiled for cpu"):
      jax.jit(program)(*arrays)
    assert CALLS['tpu'] in lowered(program, 'tpu', *arrays)
