"""A run goes on from its newest checkpoint that is whole, with settings that may have changed, and says what has."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import optax
import pytest

from jaxlm.config import DropoutConfig
from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint
from tests.trainers import tiny
from tests.trainers.test_loop import logged
from trainers import loop, run_directory, saved
from trainers.config import OptimizerConfig

SETTINGS = dict(ema_decay=0.5, keep=9)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A finished run of 8 steps, with checkpoints of 2, 4, 6 and 8: (directory, last state)."""
  directory = tmp_path_factory.mktemp('runs') / 'whole'
  return directory, tiny.fit(tiny.config(directory, **SETTINGS))


@pytest.fixture
def half(whole, tmp_path):
  """A copy of it that stopped after step 4."""
  shutil.copytree(whole[0], tmp_path / 'run')
  for step in (6, 8):
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step))
  return tmp_path / 'run'


def flip(folder):
  """Changes a number of the first parameter, as a worn disk would, by another digest in the notes."""
  path = folder / 'notes' / 'metadata'
  notes = json.loads(path.read_text())
  name = min(notes['digests']['params'])
  notes['digests']['params'][name] = 'float32:00000000'
  path.write_text(json.dumps(notes))


def note(folder, **changes):
  path = folder / 'notes' / 'metadata'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
  'flipped bit': flip,
  'no notes': lambda folder: shutil.rmtree(folder / 'notes'),
  'no parameters': lambda folder: shutil.rmtree(folder / 'params'),
  'empty folder': lambda folder: (shutil.rmtree(folder), folder.mkdir()),
  'tokens of a wrong type': lambda folder: note(folder, tokens='many'),
}


@pytest.fixture
def opened(half):
  """The run, opened as a process that resumes it does: (its parts, its abstract state)."""
  run = loop._Run(tiny.make_task(tiny.TinyConfig()), tiny.config(half, **SETTINGS))
  yield run, run.layout.abstract(run.init)
  run.close()


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_is_moved_aside_whole(half, opened, damage):
  DAMAGE[damage](half / 'checkpoints' / '4')
  before, said = sorted(p.name for p in (half / 'checkpoints' / '4').rglob('*')), []
  run, abstract = opened
  step, state, notes = run.checkpoints.restore(abstract, said.append)
  assert (step, int(state.step)) == (2, 2) and notes.tokens > 0
  assert len(said) == 1 and 'checkpoints/4' in said[0] and 'damaged-checkpoints/4' in said[0]
  assert sorted(p.name for p in (half / 'damaged-checkpoints' / '4').rglob('*')) == before
  assert checkpoint.steps(half / 'checkpoints') == [2]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(half, whole, capsys):
  flip(half / 'checkpoints' / '4')
  state = tiny.fit(tiny.config(half, **SETTINGS))
  out = capsys.readouterr().out
  assert 'checkpoints/4/params is damaged' in out and 'Resuming at step 2' in out
  chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(whole[1]))
  assert logged(half) == logged(whole[0])


def test_without_a_good_checkpoint_the_newest_is_named_and_nothing_moves(half):
  for step in (2, 4):
    flip(half / 'checkpoints' / str(step))
  config = (half / 'config.json').read_bytes()
  with pytest.raises(CheckpointError, match=r'checkpoints/4/params is damaged'):
    tiny.fit(tiny.config(half, **SETTINGS, log_every=2))
  assert checkpoint.steps(half / 'checkpoints') == [2, 4] and not (half / 'damaged-checkpoints').exists()
  assert (half / 'config.json').read_bytes() == config


def test_loading_names_the_damaged_checkpoint_and_the_others(half):
  note(half / 'checkpoints' / '4', digests={'ema': {'head': 'float32:00000000'}})
  with pytest.raises(CheckpointError, match=r'checkpoints/4/ema is damaged.*steps \[2\] as well'):
    checkpoint.load_run(half)
  assert checkpoint.load_run(half, step=2)[0] == tiny.MODEL
  shutil.rmtree(half / 'checkpoints' / '4' / 'ema')
  with pytest.raises(CheckpointError, match='checkpoints/4/ema does not exist'):
    checkpoint.load_run(half)


@pytest.mark.parametrize('value', ['many', None, [], True, float('nan'), 1e999])
def test_notes_of_a_wrong_type_name_the_field(half, value):
  folder = half / 'checkpoints' / '4'
  note(folder, tokens=value)
  if value is None:
    assert saved.Notes.read(folder).tokens == 0.0
  else:
    with pytest.raises(CheckpointError, match=r'checkpoints/4/notes/metadata: tokens='):
      saved.Notes.read(folder)


def clipped(config, norm):
  return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clip_norm=norm))


@pytest.mark.parametrize('before, after', [(1.0, 0.0), pytest.param(0.0, 1.0, marks=pytest.mark.slow)])
def test_clipping_may_be_switched_on_and_off(tmp_path, capsys, before, after):
  def run(name, norm, steps):
    constant = OptimizerConfig(learning_rate=0.02, warmup_steps=2, clip_norm=norm)
    return tiny.fit(dataclasses.replace(tiny.config(tmp_path / name, steps=steps, save_every=0), optimizer=constant))

  first = jax.device_get(run('run', before, 3))
  last = jax.device_get(run('run', after, 4))
  assert f'optimizer.clip_norm {before} -> {after}' in capsys.readouterr().out
  optimizer = loop.make_optimizer(OptimizerConfig(learning_rate=0.02, warmup_steps=2, clip_norm=after), 4)
  step = jax.jit(loop.make_train_step(tiny.make_task(tiny.TinyConfig()).loss, optimizer.tx))
  chex.assert_trees_all_close(step(first, tiny.make_batch(3))[0].params, last.params, atol=1e-6)


def test_an_optimizer_state_from_before_clipping_had_a_place_is_read(half, opened):
  """Runs without clipping once saved their optimizer's state as the first link of its chain."""
  run, abstract = opened
  _, state, notes = run.checkpoints.restore(abstract, print)
  items = {'params': state.params, 'ema': state.ema, 'state': {'step': state.step, 'opt': state.opt_state[1:]}}
  shutil.rmtree(half / 'checkpoints' / '4')
  saver = checkpoint.Checkpointer(half / 'checkpoints', keep=9)
  saver.save(4, items, {'tokens': notes.tokens, 'seed': 0})
  saver.close()
  assert 'opt/0/0/count' in checkpoint.names(half / 'checkpoints' / '4' / 'state')
  step, found, _ = run.checkpoints.restore(abstract, print)
  assert step == 4 and isinstance(found.opt_state[0], optax.EmptyState)
  chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(state))


@pytest.mark.slow
def test_an_average_may_be_begun_and_dropped_and_a_jump_is_said(half, capsys):
  dropped = tiny.fit(tiny.config(half, keep=9, steps=5, ema_decay=0.0))
  assert dropped.ema is None and not (half / 'checkpoints' / '5' / 'ema').exists()
  before = jax.device_get(dropped.params)
  begun = jax.device_get(tiny.fit(tiny.config(half, keep=9, steps=6, ema_decay=0.75)))
  chex.assert_trees_all_close(
    begun.ema, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before, begun.params), atol=1e-6
  )
  out = capsys.readouterr().out
  # A cosine over 8 steps goes on as one over 5 and then over 6.
  assert 'run.ema_decay 0.5 -> 0.0' in out and out.count('The learning rate jumps at step') == 2


@pytest.mark.slow
def test_how_a_model_is_computed_may_change(half, whole):
  config, how = tiny.config(half, **SETTINGS), {'remat': 'full', 'implementation': 'xla'}
  state = tiny.fit(dataclasses.replace(config, model=tiny.MODEL.replace(**how)))
  chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(whole[1].params), atol=1e-5)
  assert how.items() <= json.loads((half / 'config.json').read_text())['model'].items()
  assert checkpoint.load_run(half)[0].implementation == 'default'


def test_a_learning_rate_that_jumps_is_said():
  changed = [('run.steps', 8, 16), ('data.tokenizer', 'bytes', 'train')]
  said = list(run_directory.news(changed, ('data.tokenizer',), 8, 0.002, 0.012))
  assert said == [
    "Ignored, because the run goes on with what it has of its own: data.tokenizer 'bytes' -> 'train'",
    'Changed since this run began: run.steps 8 -> 16',
    'The learning rate jumps at step 8: 0.002 -> 0.012',
  ]
  for before in (0.01201, None):
    assert not list(run_directory.news((), (), 8, before, 0.012))


@pytest.mark.parametrize('text', ['{"model": null}', '{"model": []}', '{"model": {}, "run": 3}', '[]', ''])
def test_a_config_that_is_none_of_a_run_is_named(half, text):
  (half / 'config.json').write_text(text)
  with pytest.raises(CheckpointError, match=r'config\.json'):
    tiny.fit(tiny.config(half, **SETTINGS))


def test_only_settings_of_how_a_model_is_computed_may_change(tmp_path):
  config = tiny.config(tmp_path / 'run')
  for _ in range(2):  # A new run, and one that is there.
    run_directory.open_run(tmp_path / 'run', config, 'tiny')[0].close()
  remat = dataclasses.replace(config, model=tiny.MODEL.replace(remat='full'))
  held, changed = run_directory.open_run(tmp_path / 'run', remat, 'tiny')
  held.close()
  assert changed == [('model.remat', 'none', 'full')]
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['model']['remat'] == 'none'
  run_directory.write_config(tmp_path / 'run', dataclasses.replace(remat, batch_size=16), 'tiny')
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['model']['remat'] == 'full'
  dropout = dataclasses.replace(config, model=tiny.MODEL.replace(remat='full', dropout=DropoutConfig(mlp=0.1)))
  held, changed = run_directory.open_run(tmp_path / 'run', dropout, 'tiny')
  held.close()
  assert ('model.dropout.mlp', 0.0, 0.1) in changed
  with pytest.raises(CheckpointError, match="begun with model.init = 'sink'; it cannot be resumed with 'xavier'"):
    run_directory.open_run(
      tmp_path / 'run', dataclasses.replace(config, model=tiny.MODEL.replace(init='xavier')), 'tiny'
    )


def test_checkpoints_of_runs_before_these_notes_go_on_bit_for_bit(half, whole):
  path = half / 'checkpoints' / '4' / 'notes' / 'metadata'
  notes = json.loads(path.read_text())
  path.write_text(json.dumps({name: notes[name] for name in ('tokens', 'seed')}))
  state = tiny.fit(tiny.config(half, **SETTINGS))
  chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(whole[1]))
  assert logged(half) == logged(whole[0])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
