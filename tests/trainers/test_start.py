"""Any trainer can begin with the parameters of another of its runs."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint
from tests.models import slow
from tests.trainers import tiny
from trainers import loop, metrics
from trainers.config import MeshConfig


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  directory = tmp_path_factory.mktemp('start') / 'first'
  tiny.fit(tiny.config(directory))
  return directory


def going_on(directory, start, mesh=MeshConfig(), **run):
  return dataclasses.replace(tiny.config(directory, **run), start=str(start), mesh=mesh)


@pytest.mark.parametrize('mesh', [MeshConfig(), *slow(MeshConfig(fsdp=2, tensor=2))], ids=['pmap', 'mesh'])
def test_a_run_goes_on_from_another_with_a_new_optimizer(first, tmp_path, mesh):
  # The warm-up begins with a learning rate of 0, so the first step leaves the parameters as they were.
  state = tiny.fit(going_on(tmp_path / 'run', first, mesh, steps=2))
  params = checkpoint.load_run(first)[1]
  moved = max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, jax.device_get((state.params, params)))))
  assert int(state.step) == 2 and 0 < moved < 0.02
  fresh = tiny.fit(tiny.config(tmp_path / 'fresh', steps=2))
  assert fresh is not None
  loss = lambda path: metrics.read(path)[0]['loss']
  assert loss(tmp_path / 'run') < loss(tmp_path / 'fresh') - 0.1


def test_a_run_is_resumed_with_the_start_it_began_with(first, tmp_path):
  tiny.fit(going_on(tmp_path / 'run', first, steps=2))
  tiny.fit(going_on(tmp_path / 'run', first, steps=3))
  with pytest.raises(CheckpointError, match='was begun with --start .*first; it cannot be resumed with new parameters'):
    tiny.fit(tiny.config(tmp_path / 'run', steps=4))


def test_another_tokenizer_is_said(tmp_path, capsys, monkeypatch):
  text = {'run': 'a', 'same': 'a', 'other': 'b'}

  def save(self, directory):
    (directory / 'tokenizer').mkdir(exist_ok=True)
    (directory / 'tokenizer' / 'vocab.txt').write_text(text[directory.name])

  monkeypatch.setattr(loop.Task, 'save_assets', save)
  tiny.fit(tiny.config(tmp_path / 'run', steps=2))
  for name in ('same', 'other'):
    tiny.fit(going_on(tmp_path / name, tmp_path / 'run', steps=2))
    said = capsys.readouterr().out
    assert ('vocab.txt in their folders tokenizer/ differ' in said) == (name == 'other')


def test_what_does_not_fit_is_named(first, tmp_path):
  wider = dataclasses.replace(going_on(tmp_path / 'wide', first), model=tiny.MODEL.replace(mlp_dim=16))
  with pytest.raises(
    CheckpointError, match=r"--start .*first: 'layer_0/mlp/down/kernel' has shape \(12, 8\), .*\(16, 8\)"
  ):
    tiny.fit(wider)
  config = going_on(tmp_path / 'other', first)
  task = tiny.make_task(config)
  type(task).trainer = 'other'
  with pytest.raises(CheckpointError, match="is a run of 'tiny', not of 'other'"):
    loop.fit(task, config)
