"""A stopped and resumed run equals one that never stopped, bit for bit, through real checkpoints."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from jaxlm.config import DropoutConfig
from jaxlm.errors import CheckpointError, DivergedError
from jaxlm.io import checkpoint
from tests.models import float64, slow
from tests.trainers import tiny
from trainers import loop, metrics
from trainers.config import ConfigError, MeshConfig


def logged(directory):
  rows = metrics.read(directory)
  return [{k: v for k, v in row.items() if not metrics.is_timing(k)} for row in rows]


def interrupt_at(monkeypatch, step):
  """Makes the next run think that a signal came while it computed `step`."""
  monkeypatch.setattr(loop.StopOnSignal, 'stop', lambda self, now, every: setattr(self, 'received', 15) or now == step)


def test_kernels_are_refused_before_anything_is_written(tmp_path):
  config = tiny.config(tmp_path / 'run')
  with pytest.raises(ConfigError, match="model.implementation='pallas' runs on TPUs, .* this process computes on cpu"):
    tiny.fit(dataclasses.replace(config, model=tiny.MODEL.replace(implementation='pallas')))
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_goes_on_in_a_program_that_uses_float64(tmp_path, monkeypatch):
  whole = tiny.fit(tiny.config(tmp_path / 'whole'))
  interrupt_at(monkeypatch, 5)
  with float64(True), pytest.raises(SystemExit):
    tiny.fit(tiny.config(tmp_path / 'parts'))
  monkeypatch.undo()
  with float64(True):
    state = tiny.fit(tiny.config(tmp_path / 'parts'))
  chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(whole.params), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('mesh', [MeshConfig(), *slow(MeshConfig(fsdp=2, tensor=2))], ids=['pmap', 'mesh'])
def test_resumed_run_is_bit_identical(tmp_path, monkeypatch, mesh):
  settings = dict(ema_decay=0.9, accumulate=2)
  # Dropout is random: its masks too must be those of the run that was not stopped.
  model = tiny.MODEL.replace(dropout=DropoutConfig(residual=0.1, attention=0.2, mlp=0.1))
  with_mesh = lambda name: dataclasses.replace(tiny.config(tmp_path / name, **settings), mesh=mesh, model=model)
  whole = tiny.fit(with_mesh('whole'))
  interrupt_at(monkeypatch, 5)
  with pytest.raises(SystemExit) as stopped:
    tiny.fit(with_mesh('parts'))
  assert stopped.value.code == 128 + 15
  assert checkpoint.steps(tmp_path / 'parts' / 'checkpoints')[-1] == 5
  monkeypatch.undo()
  # What a run logged after the checkpoint it resumes from is forgotten, and so is a line cut short by a kill.
  with open(tmp_path / 'parts' / 'metrics.jsonl', 'a') as f:
    f.write(json.dumps({'step': 6, 'loss': 99.0}) + '\n{"step": 7, "lo')
  parts = tiny.fit(with_mesh('parts'))
  chex.assert_trees_all_equal(jax.device_get(parts), jax.device_get(whole))
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole')
  rows = logged(tmp_path / 'whole')
  assert [r['step'] for r in rows if 'loss' in r] == [1, 2, 3, 4, 5, 6, 7, 8]
  assert [r['step'] for r in rows if 'valid/loss' in r] == [4, 8]
  assert rows[-1]['valid/loss'] < rows[0]['loss']


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run: (directory, last state)."""
  directory = tmp_path_factory.mktemp('runs') / 'finished'
  return directory, tiny.fit(tiny.config(directory, ema_decay=0.5))


def test_finished_run_says_so_and_a_longer_one_goes_on(finished, capsys):
  directory, state = finished
  again = tiny.fit(tiny.config(directory, ema_decay=0.5))
  assert 'is complete at step 8' in capsys.readouterr().out
  chex.assert_trees_all_equal(jax.device_get(again.params), jax.device_get(state.params))


def test_run_directory_holds_what_a_reader_needs(finished):
  directory, state = finished
  config = json.loads((directory / 'config.json').read_text())
  assert config['model']['model_dim'] == 8 and config['trainer'] == 'tiny'
  assert config['versions']['jax'] == jax.__version__ and '4 x' in config['versions']['devices']
  assert (directory / 'loss.png').read_bytes().startswith(b'\x89PNG')
  assert len(checkpoint.steps(directory / 'checkpoints')) <= 3


def test_load_run_reads_the_moving_average_into_the_asked_dtype(finished):
  directory, state = finished
  config, params, tokenizer = checkpoint.load_run(directory)
  assert config == tiny.MODEL and tokenizer is None
  chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(state.ema))
  config, params, _ = checkpoint.load_run(directory, dtype='bfloat16')
  assert config.dtype == 'bfloat16' and {x.dtype.name for x in jax.tree.leaves(params)} == {'bfloat16'}
  earlier = checkpoint.steps(directory / 'checkpoints')[0]
  assert checkpoint.load_run(directory, step=earlier)[0] == tiny.MODEL
  with pytest.raises(CheckpointError, match=r'no checkpoint of step 77; there are \['):
    checkpoint.load_run(directory, step=77)


def test_load_run_reads_straight_onto_a_mesh(finished):
  from jaxlm.models import sharding

  directory, state = finished
  _, params, _ = checkpoint.load_run(directory, mesh=sharding.make_mesh(fsdp=2, tensor=2))
  assert params['head'].sharding.shard_shape(params['head'].shape) == (4, 9)
  np.testing.assert_array_equal(params['head'], state.ema['head'])


def test_another_model_is_refused_and_other_changes_are_told(finished, capsys):
  directory, _ = finished
  config = tiny.config(directory, ema_decay=0.5)
  with pytest.raises(CheckpointError, match=r'model.mlp_dim = 12; .* with 16.*--run.directory'):
    tiny.fit(dataclasses.replace(config, model=tiny.MODEL.replace(mlp_dim=16)))
  slower = dataclasses.replace(config.optimizer, learning_rate=0.01)
  tiny.fit(dataclasses.replace(config, optimizer=slower))
  assert 'optimizer.learning_rate 0.02 -> 0.01' in capsys.readouterr().out
  tiny.fit(config)


def test_nothing_of_the_users_is_overwritten(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(CheckpointError, match="'notes.txt' but no config.json"):
    tiny.fit(tiny.config(tmp_path))
  assert [p.name for p in tmp_path.iterdir()] == ['notes.txt']
  with pytest.raises(CheckpointError, match='notes.txt is a file'):
    tiny.fit(tiny.config(tmp_path / 'notes.txt'))
  with pytest.raises(CheckpointError, match='cannot be written'):
    tiny.fit(tiny.config(tmp_path / 'notes.txt' / 'below'))


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
  config = dataclasses.replace(tiny.config(tmp_path / 'run'), bad_step=5)
  with pytest.raises(DivergedError, match=r'loss is nan at step 6, learning rate 0\.0\d+; .*checkpoints/4\.'):
    tiny.fit(config)
  assert checkpoint.steps(tmp_path / 'run' / 'checkpoints')[-1] == 4
  _, params, _ = checkpoint.load_run(tmp_path / 'run')
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_full_disk_is_told_and_the_checkpoint_before_it_loads(tmp_path, monkeypatch):
  import errno

  import orbax.checkpoint as ocp

  write = ocp.CheckpointManager.save

  def full(self, step, *args, **kwargs):
    if step == 4:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return write(self, step, *args, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, 'save', full)
  with pytest.raises(CheckpointError, match=r'checkpoints/4: .*No space left.*newest complete checkpoint is step 2'):
    tiny.fit(tiny.config(tmp_path / 'run'))
  assert checkpoint.load_run(tmp_path / 'run')[0] == tiny.MODEL


def test_batch_size_is_checked_before_anything_is_written(tmp_path):
  with pytest.raises(ConfigError, match='4 or 8'):
    tiny.fit(dataclasses.replace(tiny.config(tmp_path / 'run'), batch_size=6))
  assert not (tmp_path / 'run').exists()


def test_profile_and_tensorboard_are_written(tmp_path):
  tiny.fit(tiny.config(tmp_path / 'run', profile=2, tensorboard=True))
  assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))
  assert list((tmp_path / 'run' / 'tensorboard').glob('events*'))


def test_wandb_without_the_package_says_how_to_get_it(tmp_path):
  with pytest.raises(ConfigError, match=r'pip install "jaxlm\[wandb\]"'):
    tiny.fit(tiny.config(tmp_path / 'run', wandb='project'))
