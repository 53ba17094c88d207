"""Bytes and printed lines of caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.caches import Branch, FullCache, LayeredCache, PooledCache, Slots, sizes
from jaxlm.caches.kivi import KiviConfig
from jaxlm.caches.packed import pack
from jaxlm.caches.slots import everything_of
from tests.models import TINY


@jax.jit  # Else each operation is a program, before any test.
def some_caches():
  full, lengths = FullCache.create(TINY, 3, 16), jnp.full(3, 4)
  whole = everything_of(full.keys[0], full.values[0], lengths)
  return full, Slots.ring(TINY, 3, recent=5, initial=2), whole, pack(whole, lengths, KiviConfig(4, 8, 8))


FULL, RING, WHOLE, PACKED = some_caches()
ONE = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
  'cache, text',
  [
    (FULL, 'FullCache(2 layers, 3 rows of 16 slots; 0.0123 MB)'),
    (RING, 'Slots(3 rows of 7 slots, a ring: the first 2 and the latest 5 tokens; 0.00278 MB)'),
    (WHOLE, 'Slots(3 rows of 16 slots; 0.00635 MB)'),
    (PACKED, 'Packed(3 rows of 24 slots in 4 bits; 0.00587 MB)'),
    (LayeredCache((WHOLE, RING, RING)), 'LayeredCache(3 layers: 3 Slots; 0.0119 MB)'),
    (LayeredCache((PACKED, RING)), 'LayeredCache(2 layers: 1 Packed, 1 Slots; 0.00865 MB)'),
    (PooledCache((WHOLE, RING), ONE, ONE), 'PooledCache(2 layers of 3 rows in 2 pools; 0.00918 MB)'),
  ],
)
def test_a_cache_prints_one_line_with_its_bytes(cache, text):
  assert repr(cache) == text
  assert cache.nbytes == sizes.nbytes(cache) and f'; {cache.nbytes / 1e6:.3g} MB)' in text


def test_a_branch_prints_what_it_stands_beside():
  branch = Branch.create(FULL, TINY, 3, 4)
  assert repr(branch).startswith(f'Branch(4 tokens beside {FULL}; ') and '\n' not in repr(branch)
  assert branch.nbytes == FULL.nbytes + 2 * 2 * 3 * 4 * 2 * 8 * 4 + 3 * 4 * 4 + 4 + 3 * 4 * 4


def test_bytes_are_those_of_keys_values_and_bookkeeping():
  assert FULL.nbytes == 2 * 2 * 3 * 2 * 16 * 8 * 4
  assert RING.nbytes == 2 * 3 * 2 * 7 * 8 * 4 + 3 * 7 * 4 + 3 * 4
