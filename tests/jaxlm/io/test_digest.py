"""Digests tell whether a checkpoint holds the numbers that were saved, however they lie on devices."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint, digest
from tests.jaxlm.io.test_checkpoint import ABSTRACT, TREE
from tests.models import float64


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'bool', 'float64'])
def test_every_single_bit_counts(dtype):
  with float64(dtype == 'float64'):
    check_every_single_bit(dtype)


def check_every_single_bit(dtype):
  x = np.asarray(jnp.asarray(np.arange(12).reshape(3, 4) % 5, dtype))
  seen = {digest.digests({'x': x})['x']}
  for byte in range(x.nbytes):
    for bit in range(1 if dtype == 'bool' else 8):
      data = bytearray(x.tobytes())
      data[byte] ^= 1 << bit
      seen.add(digest.digests({'x': np.frombuffer(bytes(data), x.dtype).reshape(x.shape)})['x'])
  assert len(seen) == 1 + x.nbytes * (1 if dtype == 'bool' else 8)
  assert all(name.startswith(f'{dtype}:') for name in seen)


def test_two_equal_values_that_change_places_with_others_count():
  x = jnp.arange(6.0).reshape(2, 3)
  swapped = x[:, jnp.array([1, 0, 2])]
  names = [digest.digests({'a': {'b': y}})['a/b'] for y in (x, swapped, x.T, x.reshape(3, 2))]
  assert len(set(names[:3])) == 3


def test_a_tree_has_one_digest_of_names_dtypes_and_numbers():
  tree = {'a': jnp.arange(4.0), 'b': {'c': jnp.ones(2)}}
  known = digest.of_tree(tree)
  assert known == digest.of_tree({'b': {'c': jnp.ones(2)}, 'a': np.arange(4, dtype=np.float32)})
  others = [
    {**tree, 'a': tree['a'].at[1].add(1e-6)}, {'b': tree['b'], 'd': tree['a']}, {**tree, 'a': tree['a'].astype(jnp.bfloat16)}
  ]  # fmt: skip
  assert len({known, *map(digest.of_tree, others)}) == 4


def test_the_digest_of_parts_on_many_devices_is_that_of_the_whole():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)), jnp.float32)
  mesh = jax.make_mesh((2, 2), ('a', 'b'))
  parts = [jax.device_put(x, jax.NamedSharding(mesh, jax.P(*names))) for names in ((), ('a',), ('b', 'a'), (None, 'b'))]
  assert len({digest.digests([part])['0'] for part in (x, *parts)}) == 1


@pytest.fixture
def saved(tmp_path):
  folder = tmp_path / 'checkpoints'
  saver = checkpoint.Checkpointer(folder)
  saver.save(5, {'params': TREE}, {'digests': {'params': digest.digests(TREE)}})
  saver.close()
  return folder / '5'


def test_numbers_that_changed_are_found_in_any_dtype(saved):
  half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), ABSTRACT)
  for abstract in (ABSTRACT, half):
    read = checkpoint.read(saved, {'params': abstract})['params']
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(x.dtype)), read, TREE)
    assert read['a'].dtype == abstract['a'].dtype
  # What bfloat16 would round away is found as well.
  notes = json.loads((saved / 'notes' / 'metadata').read_text())
  other = TREE | {'a': TREE['a'].at[1, 2].add(1e-6)}
  notes['digests']['params'] = digest.digests(other)
  (saved / 'notes' / 'metadata').write_text(json.dumps(notes))
  for abstract in (ABSTRACT, half):
    with pytest.raises(CheckpointError, match=r"checkpoints/5/params is damaged: 'a' has the digest float32:"):
      checkpoint.read(saved, {'params': abstract})


def test_flipped_bits_in_files_are_never_loaded(saved, tmp_path):
  rng, copy, refused = random.Random(1), tmp_path / 'copy', 0
  files = sorted(p.relative_to(saved) for p in (saved / 'params').rglob('*') if p.is_file() and p.parent.name == 'd')
  for _ in range(12):
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(saved, copy)
    file = copy / rng.choice(files)
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(data))
    try:
      read = checkpoint.read(copy, {'params': ABSTRACT})['params']
    except CheckpointError:
      refused += 1
    else:
      jax.tree.map(np.testing.assert_array_equal, read, TREE)
  assert refused


@pytest.mark.parametrize('notes', ['[]', '{"digests": 3}', '{"digests": {"params": {"a": "md5"}}}', '\x00', '{"n": '])
def test_notes_that_are_none_name_their_file(saved, notes):
  (saved / 'notes' / 'metadata').write_text(notes)
  with pytest.raises(CheckpointError, match=r'checkpoints/5/notes/metadata'):
    checkpoint.read(saved, {'params': ABSTRACT})


def test_checkpoints_without_digests_load(saved):
  (saved / 'notes' / 'metadata').write_text('{}')
  jax.tree.map(np.testing.assert_array_equal, checkpoint.read(saved, {'params': ABSTRACT})['params'], TREE)
