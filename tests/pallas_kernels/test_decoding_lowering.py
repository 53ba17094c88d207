"""The decode attention kernel lowers for a TPU at the sizes of a 1B Llama; with libtpu, which needs no TPU, it is compiled too."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import decode_attention
from pallas_kernels.decoding import Beside
from pallas_kernels.decoding_calls import Codes
from tests.pallas_kernels.lowering import CALLS, compiled_for_tpu, copied_shapes, lowered

N, K, S = 32, 8, 32768


def shaped(*shape, dtype='bfloat16'):
  return jax.ShapeDtypeStruct(shape, dtype)


def cache(B, H, bits=None, group=32):
  """Returns shapes of keys and values of 16 bits, or quantised."""
  if bits is None:
    return (shaped(B, K, S, H),) * 2
  P = H * bits // 8
  of_groups = lambda *shape: (shaped(B, K, *shape),) * 2
  keys = Codes(shaped(B, K, S, P, dtype='uint8'), *of_groups(S // group, H))
  return keys, Codes(shaped(B, K, P, S, dtype='uint8'), *of_groups(H // group, S))


def arguments(B, T, H, bits=None, key_positions=False, beside=None):
  """Returns q, keys, values, positions, key positions and tokens beside the cache; the latter two may be None."""
  ints = functools.partial(shaped, dtype='int32')
  tokens = beside and Beside(*(shaped(B, K, beside, H),) * 2, ints(B, beside), shaped(B, T, beside, dtype='bool'))
  return shaped(B, T, N, H), *cache(B, H, bits), ints(B, T), ints(B, S) if key_positions else None, tokens


def attend(*arrays, **options):
  q, keys, values, positions, key_positions, beside = arrays
  return decode_attention(
    q, keys, values, positions=positions, key_positions=key_positions, beside=beside, implementation='pallas', **options
  )  # fmt: skip


CASES = [
  (arguments(1, 1, 64), {}),
  (arguments(16, 1, 64), {}),
  (arguments(1, 1, 64, bits=4), {}),
  (arguments(16, 1, 64, bits=4), {}),
  (arguments(1, 5, 128, bits=4, beside=5), {}),
  (arguments(1, 1, 256, bits=4), {}),
  (arguments(2, 1, 128, bits=8), {}),
  (arguments(2, 64, 128, beside=64), {'window': 4096, 'softcap': 50.0}),
  (arguments(1, 1, 96, key_positions=True), {'window': 1024, 'initial': 4, 'operation': 'sigmoid', 'splits': 2}),
]


@pytest.mark.parametrize('arrays, options', CASES)
def test_lowers_for_a_tpu_without_one(arrays, options):
  leaves, tree = jax.tree.flatten(arrays)
  program = lambda *leaves: attend(*jax.tree.unflatten(tree, leaves), **options)
  assert lowered(program, 'tpu', *leaves).count(CALLS['tpu']) == 1


@pytest.mark.slow
@pytest.mark.parametrize('arrays, options', CASES)
def test_compiles_for_a_tpu_and_copies_no_cache(arrays, options):
  program = compiled_for_tpu(functools.partial(attend, **options), *arrays)
  assert not any(S in shape for shape in copied_shapes(program))
  given = sum(jnp.dtype(x.dtype).itemsize * x.size for x in jax.tree.leaves(arrays))
  assert program.memory_analysis().temp_size_in_bytes < given / 8
