"""Digests of arrays, which show whether a checkpoint still holds the numbers that were saved.

  digest = sum_i h(b_i xor i g) mod 2^32,   b_i: the bits of element i as an integer

h is the finaliser of murmur3 and g a constant from the golden ratio. h is one to one, so a change of one element always changes
the digest; a change of several does with probability 1 - 2^-32. An element of 8 bytes counts as two of 4 bytes.
The digest does not depend on how an array is sharded, and it is computed on the devices that hold the array.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  bits = jax.lax.bitcast_convert_type(x, BITS[x.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size & 0xFFFFFFFF) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  h = bits ^ (index * jnp.uint32(0x9E3779B1))
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
  return jnp.sum(h ^ (h >> jnp.uint32(16)), dtype=jnp.uint32)


def name_of(path: Any) -> str:
  """Returns the name of a leaf, such as layer_0/mlp/up/kernel, from its path in a tree."""
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def digests(tree: Any) -> dict[str, str]:
  """Returns the digest of each leaf by its name, such as 'float32:1a2b3c4d'. Every process of a run calls this."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums = jax.device_get([_digest(x) for _, x in leaves])
  return {name_of(p): f'{x.dtype.name}:{int(n):08x}' for (p, x), n in zip(leaves, sums, strict=True)}


def of_tree(tree: Any) -> str:
  """Returns one digest, in hexadecimal, of the names, dtypes and numbers of all leaves. Every process of a run calls this."""
  return hashlib.sha256(json.dumps(digests(tree), sort_keys=True).encode()).hexdigest()


def saved_dtype(digest: str) -> jnp.dtype:
  """Returns the dtype in a digest: that of the array when it was saved."""
  return jnp.dtype(digest.split(':')[0])
