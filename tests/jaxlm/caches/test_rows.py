"""Writes into rows of a cache: the same on each platform, and in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention import cached
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import rows
from jaxlm.caches.full import FullCache
from tests.pallas_kernels.lowering import compiled_for_tpu, copied_shapes


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('axis', [2, 3])
def test_a_tpu_writes_the_same(monkeypatch, masked, axis):
  rng = np.random.default_rng(0)
  slots, new = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 2, 9, 9), (3, 2, 4, 4)))
  new = new[:, :, :, :1].repeat(9, axis=3) if axis == 2 else new[:, :, :1].repeat(9, axis=2)
  start, mask = np.int32([0, 5, 3]), np.asarray([True, False, True]) if masked else None
  write = lambda: jax.jit(lambda s, n, at, m: rows.write_rows(s, n, at, mask_B=m, axis=axis))(slots, new, start, mask)
  here = write()
  expected = slots.copy()
  for b in range(3):
    if mask is None or mask[b]:
      place = slice(start[b], start[b] + 4)
      expected[(b, slice(None), place) if axis == 2 else (b, slice(None), slice(None), place)] = new[b]
  monkeypatch.setattr(
    jax.lax, 'platform_dependent', lambda *args, tpu=None, default=None, **others: (tpu or default)(*args)
  )
  np.testing.assert_array_equal(here, expected)
  np.testing.assert_array_equal(write(), expected)


@pytest.mark.slow
def test_a_step_on_a_tpu_copies_no_cache():
  """Two rows of a cache, whose tokens lie apart in memory where the head size is not a whole number of lanes."""
  B, N, K, S, H = 2, 8, 8, 16384, 64
  rule = AttentionRule('softmax', H**-0.5)

  def steps(cache, q, position, count):
    def step(_, carry):
      cache, q, position = carry
      out, cache = cache.attend(0, q, q[:, :, :K], q[:, :, :K], position, rule)
      return cache, out, position + 1

    return jax.lax.fori_loop(0, count, step, (cache, q, position))

  stored = jax.ShapeDtypeStruct((B, K, S, H), jnp.bfloat16)
  arrays = FullCache((stored,), (stored,), (False,)), jax.ShapeDtypeStruct((B, 1, N, H), jnp.bfloat16)
  ints = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((B, 1), ())]
  with cached.through(implementation='pallas'):
    program = compiled_for_tpu(steps, *arrays, *ints, donate=(0,))
  assert not any(S in shape for shape in copied_shapes(program))
  assert program.memory_analysis().temp_size_in_bytes < B * K * S * H
