"""The TPU's kernels in JAX's simulation of a TPU, whose memory starts as NaN and which notices races; and what VMEM holds."""

import functools
import math

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention_streamed, flash_attention
from tests.pallas_kernels import dense

SEGMENTS = np.repeat(np.int32([-1, 1, 2]), (1, 19, 20))[None]


def simulated():
  """Returns parameters of the simulation, with two cores that share the axes of the grid that are parallel."""
  try:
    return pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan', num_cores_or_threads=2)
  except TypeError:  # jax 0.7
    return pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan', num_cores_per_device=2)


def drawn():
  rng = np.random.default_rng(0)
  return [rng.normal(size=(1, 40, n, 16)).astype(np.float32) for n in (2, 1, 1, 2)]


def raced() -> bool:
  """Returns whether the last simulation had a race. JAX keeps this in a module without a public name, which has moved."""
  from jax._src.pallas.mosaic import interpret

  return (interpret if hasattr(interpret, 'races') else interpret.interpret_pallas_call).races.races_found


def test_the_forward_pass_runs_in_a_simulated_tpu():
  q, k, v, _ = drawn()
  options = {'operation': 'sigmoid', 'window': 5, 'prefix': 17, 'segments': SEGMENTS}
  attend = functools.partial(flash_attention, **options, interpret=simulated(), block_q=16, block_k=16)
  np.testing.assert_allclose(jax.jit(attend)(q, k, v), dense.attention(q, k, v, **options), atol=1e-5)
  assert not raced()


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [{}, {'operation': 'sigmoid', 'window': 5, 'prefix': 17, 'segments': SEGMENTS}, {'window': 18, 'softcap': 1.0, 'slot_logit': np.ones(2)}],
)  # fmt: skip
def test_gradients_run_in_a_simulated_tpu(options):
  *arrays, dout = drawn()
  attend = functools.partial(flash_attention, **options, interpret=simulated(), block_q=16, block_k=16)
  actual = jax.jit(lambda *a: dense.gradients(attend, a, dout))(*arrays)
  for a, e in zip(actual, dense.exact(*arrays, dout, **options)):
    np.testing.assert_allclose(a, e, atol=1e-5)
  assert not raced()


def held(monkeypatch, T, N, K, H, **options):
  """Returns the bytes of all blocks and sums of each kernel that is traced; the forward pass is traced twice."""
  found = []
  size = lambda shape, dtype: math.prod(d or 1 for d in shape) * jnp.dtype(dtype).itemsize

  def recorded(blocks, state, rule):
    found.append(sum(size(*block) for block in blocks) + sum(size(shape, 'float32') for shape, _ in state))

  monkeypatch.setattr(attention_streamed, '_vmem_limit', recorded)
  arrays = [jax.ShapeDtypeStruct((1, T, n, H), jnp.bfloat16) for n in (N, K, K)]
  attend = functools.partial(
    flash_attention, interpret=True, block_q=512, block_k=512, segments=jnp.zeros((1, T), jnp.int32), **options
  )
  jax.eval_shape(jax.grad(lambda *a: attend(*a).astype(jnp.float32).sum(), argnums=(0, 1, 2)), *arrays)
  return found


def test_vmem_holds_as_much_for_128k_tokens_as_for_2k(monkeypatch):
  short, long = (held(monkeypatch, T, 8, K, 128) for T, K in ((2048, 8), (131072, 1)))
  assert set(short) == set(long) and len(set(long)) == 3
  assert max(long) < 2 * 2**20


def test_keys_of_a_prefix_have_a_call_of_their_own(monkeypatch):
  """All queries visit them; without that call, all would visit the other blocks of keys too."""
  assert len(held(monkeypatch, 8192, 4, 1, 128, window=512)) == 4
  assert len(held(monkeypatch, 8192, 4, 1, 128, window=512, prefix=4)) == 5
  assert len(held(monkeypatch, 8192, 4, 1, 128, prefix=4)) == 4
