"""Training that goes on from a model: what comes from it, what may differ, and that resuming needs it no more."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.data import tokenizers
from jaxlm.io import checkpoint
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import init_params
from tests.models import TINY, slow
from tests.trainers.pretrain.test_train import parse
from tests.trainers.test_loop import interrupt_at, logged
from trainers import command_line, metrics, pretrain
from trainers.config import ConfigError, MeshConfig
from trainers.pretrain import continued

BYTES = tokenizers.ByteTokenizer()
MODEL = TINY.replace(vocab_size=264, num_layers=1, max_length=48)  # Padded: the tokenizer has 259.
STEPS = '--run.steps', '6', '--optimizer.warmup-steps', '2', '--run.log-every', '1'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A Hugging Face directory, its LanguageModel, and a folder with text."""
  folder = tmp_path_factory.mktemp('continued')
  params = init_params(MODEL, jax.random.key(7))
  path = folder / 'model'
  jaxlm.save_huggingface(LanguageModel(MODEL, jax.tree.map(lambda x: x.astype('bfloat16'), params)), path)
  BYTES.save(path)
  lines = [json.dumps({'text': f'{i} is less than {i + 1} and {i + 2}. ' * (1 + i % 3)}) for i in range(60)]
  for name, some in (('train', lines[:50]), ('valid', lines[50:])):
    (folder / f'{name}.jsonl').write_text('\n'.join(some))
  return path, jaxlm.load(path, 'float32'), folder


def config(model, tmp_path, *flags, name='run', start=None):
  path, _, folder = model
  source = '--data.source', str(folder / 'train.jsonl'), '--data.valid-source', str(folder / 'valid.jsonl')
  quiet = '--eval.sample-tokens', '0', '--run.no-tensorboard', '--run.directory', str(tmp_path / name)
  return parse('smoke', '--start', str(start or path), *source, *quiet, *STEPS, *flags)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))


def begun(model, tmp_path, *flags, explicit=(), **mesh):
  made = dataclasses.replace(config(model, tmp_path, *flags), mesh=MeshConfig(**mesh))
  return continued.begin(made, tmp_path / 'run', explicit)


def test_architecture_tokenizer_and_parameters_are_the_models(model, tmp_path):
  made, tokenizer, params = begun(model, tmp_path, '--model.remat', 'full', '--model.dtype', 'bfloat16')
  path, lm, _ = model
  assert made.model == lm.config.replace(dtype='bfloat16', remat='full') and made.start == str(path)
  assert tokenizer.encode('a b') == BYTES.encode('a b')
  chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(lm.params))
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}


@pytest.mark.parametrize('mesh', [{}, {'fsdp': 2}, {'fsdp': 2, 'tensor': 2}], ids=['pmap', 'fsdp', 'fsdp x tensor'])
def test_the_first_step_is_that_of_the_models_parameters_on_any_mesh(model, tmp_path, mesh):
  from trainers import distributed, loop
  from trainers.pretrain import task as language_modeling

  made, tokenizer, params = begun(model, tmp_path, '--reverse.signal', 'token', '--direction', 'both', **mesh)
  task = language_modeling.LanguageModeling(made, tokenizer, params)
  layout = distributed.make_layout(made.mesh)
  run = loop._Run(task, made)
  fresh = run.layout.abstract(run.init)
  state = run.begin(fresh)
  run.close()
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, fresh)
  if not layout.mapped:
    q = state.params['layer_0']['attention']['q']['kernel']
    assert q.addressable_shards[0].data.shape == layout.shardings(state.params)['layer_0']['attention']['q']['kernel'].shard_shape(q.shape) != q.shape  # fmt: skip
  old, new = jax.device_get(model[1].params), jax.device_get(state.params)
  chex.assert_trees_all_equal({**new, 'embed': 0, 'head': 0}, {**old, 'embed': 0, 'head': 0})
  assert made.model.vocab_size == 266 and new['embed']['embedding'].shape[0] == new['head'].shape[1] == 266
  fresh = init_params(made.model, jax.random.key(made.run.seed))
  np.testing.assert_array_equal(new['embed']['embedding'][:264], old['embed']['embedding'])
  np.testing.assert_array_equal(new['head'][:, :264], old['head'])
  np.testing.assert_allclose(new['embed']['embedding'][264:], fresh['embed']['embedding'][264:], rtol=1e-6)
  np.testing.assert_allclose(new['head'][:, 264:], fresh['head'][:, 264:], rtol=1e-6)
  # The signal's ids are the last of the model's vocabulary, not those behind the tokenizer's.
  seen = {int(i) for i in task.batch(0, slice(0, 8))['tokens'].ravel()}
  assert {264, 265} <= seen and not {259, 260} & seen


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [MeshConfig(), *slow(MeshConfig(fsdp=2, tensor=2))], ids=['pmap', 'mesh'])
def test_a_run_resumes_bit_for_bit_without_the_model(model, tmp_path, monkeypatch, capsys, mesh):
  copy = shutil.copytree(model[0], tmp_path / 'copy')
  flags = '--direction', 'both', '--reverse.signal', 'bos'
  make = lambda name: dataclasses.replace(config(model, tmp_path, *flags, name=name, start=copy), mesh=mesh)
  whole = pretrain.main(make('whole'))
  saved = json.loads((tmp_path / 'whole' / 'config.json').read_text())
  assert saved['start'] == str(copy) and saved['model']['vocab_size'] == 265
  rows = metrics.read(tmp_path / 'whole')
  assert rows[0]['learning_rate'] == 0.0 < rows[1]['learning_rate']
  interrupt_at(monkeypatch, 4)
  with pytest.raises(SystemExit):
    pretrain.main(make('parts'))
  monkeypatch.undo()
  shutil.rmtree(copy)
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'another'))
  parts = pretrain.main(make('parts'))
  assert 'resuming at step 4' in capsys.readouterr().out
  chex.assert_trees_all_equal(jax.device_get(parts), jax.device_get(whole))
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole')
  lm = jaxlm.load(tmp_path / 'whole')
  assert (lm.config.direction_signal, lm.config.num_layers, lm.tokenizer.vocab_size) == ('bos', 1, 259)


def test_a_run_of_ours_is_trained_further_and_neither_is_taken_for_the_other(model, tmp_path):
  first = config(model, tmp_path, name='first')
  state = pretrain.main(first)
  more = config(model, tmp_path, '--direction', 'both', name='more', start=tmp_path / 'first')
  _, _, params = continued.begin(more, tmp_path / 'more')
  chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(state.params))
  for start in (None, str(tmp_path / 'first')):
    with pytest.raises(ValueError, match='was begun with --start .*model; it cannot be resumed with'):
      pretrain.main(dataclasses.replace(first, start=start))
  assert checkpoint.steps(tmp_path / 'first' / 'checkpoints')[-1] == 6


def test_what_does_not_fit_the_model_is_refused_with_both_values(model, tmp_path):
  path = model[0]
  for flags, message in (
    (('--model.num-layers', '3'), f'model.num_layers=3 does not fit --start {path}, whose num_layers is 1'),
    (('--model.vocab-size', '300'), 'model.vocab_size=300 .* vocab_size is 264'),
    (('--data.length', '64'), 'data.length=64 is longer than the model: model.max_length=48'),
    (('--data.tokenizer', str(tmp_path)), r'\(300 ids\) is not the tokenizer of --start .* \(259 ids\)'),
  ):
    if '--data.tokenizer' in flags:
      tokenizers.train_sentencepiece([f'{i} words and {i * 7} more of them' for i in range(200)], 300, tmp_path)
    with pytest.raises(ConfigError, match=message):
      begun(model, tmp_path, *flags, explicit=command_line.explicit_fields('model', flags))
  lengthened, _, _ = begun(model, tmp_path, '--data.length', '64', '--model.max-length', '80', explicit={'max_length'})
  assert lengthened.model.max_length == 80
  signalled = dataclasses.replace(MODEL, direction='both', direction_signal='token')
  assert continued._added_ids(signalled, 'token', 'x') == continued._added_ids(signalled, 'none', 'x') == 0
  with pytest.raises(ConfigError, match="reverse.signal='bos' does not fit --start x, whose signal is 'token'"):
    continued._added_ids(signalled, 'bos', 'x')


def test_flags_say_fields_and_choose_the_directory():
  flags = ['--model.rope.theta=3', '--model.no-qkv-bias', '--model.num-layers', '3', '--data.length', '5']
  assert command_line.explicit_fields('model', flags) == {'rope', 'qkv_bias', 'num_layers'}
  assert parse('smoke', '--start', 'x').run.directory == 'runs/smoke-continued'
  assert parse('smoke', '--start=x', '--run.directory', 'y').run.directory == 'y'
  assert parse('smoke').start is None and parse('smoke').run.directory == 'runs/smoke'
