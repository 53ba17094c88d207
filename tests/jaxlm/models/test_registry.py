"""`jaxlm.load` opens the runs of every trainer that is known."""

import dataclasses
import json

import jax
import pytest

import jaxlm
from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint
from jaxlm.models import registry


@dataclasses.dataclass(frozen=True)
class Line:
  """y = a x + b, a model that is none of language."""

  inputs: int
  dtype: str = 'float32'

  def replace(self, **changes):
    return dataclasses.replace(self, **changes)


def line_config(fields):
  if set(fields) != {'inputs', 'dtype'}:
    raise ValueError(f'{sorted(fields)} are not the fields of a line.')
  return Line(**fields)


def shapes(config):
  return {'a': jax.ShapeDtypeStruct((config.inputs,), 'float32'), 'b': jax.ShapeDtypeStruct((), 'float32')}


def write_run(directory, trainer, model):
  params = {'a': jax.numpy.arange(3.0), 'b': jax.numpy.ones(())}
  saver = checkpoint.Checkpointer(directory / 'checkpoints')
  saver.save(4, {'params': params}, {})
  saver.wait()
  saver.close()
  (directory / 'config.json').write_text(json.dumps({'trainer': trainer, 'model': model}))
  return params


def test_a_run_of_a_registered_trainer_loads_as_what_it_is(tmp_path, monkeypatch):
  monkeypatch.setattr(registry, '_kinds', dict(registry._kinds))
  registry.register('line', registry.RunKind('a line', line_config, shapes, lambda *parts: ('line', *parts)))
  params = write_run(tmp_path, 'line', {'inputs': 3, 'dtype': 'float32'})
  what, config, loaded, tokenizer = jaxlm.load(tmp_path)
  assert what == 'line' and config == Line(3) and tokenizer is None
  assert jax.tree.map(lambda x: x.tolist(), loaded) == jax.tree.map(lambda x: x.tolist(), params)
  assert checkpoint.run_kind(tmp_path).what == 'a line'


def test_a_run_of_an_unknown_trainer_says_what_is_known(tmp_path):
  write_run(tmp_path, 'line', {'inputs': 3})
  with pytest.raises(CheckpointError, match="'inputs'.*run of 'line', which is none of pretrain.*registry.register"):
    jaxlm.load(tmp_path)
  write_run(tmp_path / 'number', 7, {'inputs': 3})
  with pytest.raises(CheckpointError, match='"trainer" is 7, not the name of a trainer'):
    jaxlm.load(tmp_path / 'number')
