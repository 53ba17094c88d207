"""Checkpoints keep what they promise and refuse what is damaged, naming it."""

import shutil

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint

TREE = {'a': jnp.arange(6.0).reshape(2, 3), 'b': {'kernel': jnp.ones((4, 5))}}
ABSTRACT = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])), TREE
)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  saver = checkpoint.Checkpointer(folder, keep=2, keep_also=lambda steps: [s for s in steps if s == 2])
  for step in range(1, 6):
    saver.save(step, {'params': TREE, 'ema': None}, {'n': step})
  saver.wait()
  saver.close()
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints' / '5'


def test_newest_two_and_the_chosen_one_are_kept(saved):
  assert checkpoint.steps(saved) == [2, 4, 5]
  assert checkpoint.read_notes(saved / '5') == {'n': 5}
  chex.assert_trees_all_equal(checkpoint.read(saved / '5', {'params': ABSTRACT})['params'], TREE)


@pytest.mark.parametrize(
  'tree, message',
  [
    (ABSTRACT | {'a': jax.ShapeDtypeStruct((3, 2), jnp.float32)}, r"'a' has shape \(2, 3\), the config wants \(3, 2\)"),
    (ABSTRACT | {'z': ABSTRACT['a']}, r"no 'z', which the config wants with shape \(2, 3\)"),
    ({'a': ABSTRACT['a']}, r"has 'b/kernel' of shape \(4, 5\), which the config does not know"),
  ],
)
def test_first_parameter_that_differs_is_named_with_both_shapes(saved, tree, message):
  with pytest.raises(CheckpointError, match=message):
    checkpoint.read(saved / '5', {'params': tree})


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'delete'])
@pytest.mark.parametrize('pattern', ['manifest.ocdbt', '_METADATA', 'd/*'])
def test_damaged_files_are_refused_naming_the_folder(copy, pattern, damage):
  for file in (copy / 'params').glob(pattern):
    data, middle = file.read_bytes(), file.stat().st_size // 2
    if damage == 'delete':
      file.unlink()
    else:
      rest = b'' if damage == 'truncate' else bytes([data[middle] ^ 255]) + data[middle + 1 :]
      file.write_bytes(data[:middle] + rest)
  with pytest.raises(CheckpointError, match=r'checkpoints/5/params is damaged'):
    checkpoint.read(copy, {'params': ABSTRACT})


def test_a_save_that_was_cut_short_does_not_count(copy):
  folder = copy.parent
  (folder / '5').rename(folder / '5.orbax-checkpoint-tmp-1')
  assert checkpoint.steps(folder) == [2, 4]
  saver = checkpoint.Checkpointer(folder)
  assert saver.latest() == 4
  saver.close()


def test_directories_that_are_no_runs_say_why(tmp_path):
  with pytest.raises(CheckpointError, match='no config.json'):
    checkpoint.load_run(tmp_path)
  (tmp_path / 'config.json').write_text('{"model": {"model_dim": 8')
  with pytest.raises(CheckpointError, match='config.json cannot be read'):
    checkpoint.load_run(tmp_path)
  (tmp_path / 'config.json').write_text('{"model": {"modeldim": 8}}')
  with pytest.raises(CheckpointError, match="Did you mean 'model_dim'"):
    checkpoint.load_run(tmp_path)
  (tmp_path / 'config.json').write_text('{"model": {"model_dim": 8}}')
  with pytest.raises(CheckpointError, match='no complete checkpoint'):
    checkpoint.load_run(tmp_path)
