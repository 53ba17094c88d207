"""A classifier on a frozen language model needs just that model; one that trains it holds it."""

import json

import chex
import jax
import numpy as np
import pytest

import decoders
import jaxlm
from jaxlm import lm_states
from jaxlm.data.class_batches import EncodedTexts
from jaxlm.data.corpus import TokenCorpus
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import CheckpointError
from jaxlm.language_model import LanguageModel
from jaxlm.models import exam
from jaxlm.text_classifier import TextClassifier, weights_digest
from tests.models import TINY, init
from trainers import classify, command_line, loop, metrics
from trainers.classify import data
from trainers.config import ConfigError, OptimizerConfig, RunConfig

MODEL = TINY.replace(vocab_size=264, max_length=32, num_layers=1)


@pytest.fixture(scope='module')
def lm(tmp_path_factory):
  """Returns the Hugging Face directory of a language model on bytes."""
  path = tmp_path_factory.mktemp('lm') / 'model'
  jaxlm.save_huggingface(LanguageModel(MODEL, init(MODEL, jax.random.key(7))), path)
  ByteTokenizer().save(path)
  return path


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  path = tmp_path_factory.mktemp('texts') / 'a.csv'
  path.write_text('label,text\n' + ''.join(f'{"ab"[i % 2]},{"xy"[i % 2]} and {i}\n' for i in range(40)))
  return path


def run(lm, texts, directory, *flags):
  args = (
    'lm', '--lm', str(lm), '--data.source', str(texts), '--data.valid-source', str(texts), '--run.directory', str(directory),
    '--run.steps', '5', '--run.eval-every', '0', '--run.no-tensorboard', '--optimizer.warmup-steps', '1', '--data.batch-size', '8',
    '--model.max-length', '12', '--run.patience', '0',
  )  # fmt: skip
  made = command_line.parse(classify.PRESETS, 'lm', prog='classify', description='Classifies.', args=(*args, *flags))
  return classify.main(made)


def losses(directory):
  return [row['loss'] for row in metrics.read(directory) if 'loss' in row]


@pytest.fixture(scope='module')
def frozen(lm, texts, tmp_path_factory):
  directory = tmp_path_factory.mktemp('runs') / 'frozen'
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAXLM_CACHE', str(directory.parent))
    patch.setattr(loop, 'plot_losses', lambda *_, **__: None)  # It takes a third of a short run.
    run(lm, texts, directory)
  return directory


def test_states_of_a_frozen_language_model_are_computed_once(frozen, lm, texts, tmp_path, monkeypatch):
  """A second run on the same texts reads them from the file."""
  folder = frozen.parent / 'states'
  assert len(list(folder.iterdir())) == 1  # Training and held-out texts are the same ones.
  monkeypatch.setenv('JAXLM_CACHE', str(frozen.parent))
  monkeypatch.setattr(loop, 'plot_losses', lambda *_, **__: None)
  with monkeypatch.context() as patch:
    patch.setattr(lm_states, '_states', None)
    patch.setattr(exam.functions, 'text_states', None)
    run(lm, texts, tmp_path / 'again')
  assert losses(tmp_path / 'again') == losses(frozen)


@pytest.mark.slow
def test_states_that_are_computed_in_each_step_give_the_same_losses(frozen, lm, texts, tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path))
  run(lm, texts, tmp_path / 'each step', '--lm-cache', '0')
  assert not (tmp_path / 'states').exists()
  np.testing.assert_allclose(losses(tmp_path / 'each step'), losses(frozen), rtol=1e-5)


def test_a_frozen_language_model_is_loaded_beside_the_classifier(frozen, lm):
  model = jaxlm.load(frozen)
  assert isinstance(model, TextClassifier) and 'lm of' in repr(model) and 'lm' not in model.params
  chex.assert_trees_all_equal(model.lm_params, jaxlm.load(lm).params)
  assert model.config.lm.digest == weights_digest(model.lm_params)
  found = decoders.classify(model, ['x and 3'], explain=True)
  assert found.contributions[0].words == list('x and 3') and set(found.labels[0]) == {'a', 'b'}


def test_another_language_model_in_its_place_is_refused(frozen, lm, tmp_path):
  path = frozen / 'config.json'
  fields = json.loads(path.read_text())

  def refused(name, message):
    path.write_text(
      json.dumps(fields | {'model': fields['model'] | {'lm': fields['model']['lm'] | {'name': str(name)}}})
    )
    try:
      with pytest.raises(CheckpointError, match=message):
        jaxlm.load(frozen)
    finally:
      path.write_text(json.dumps(fields))

  refused(tmp_path / 'nowhere', 'nowhere.* cannot be loaded: .* train with --model.train-lm')
  for name, config, message in (
    ('other', MODEL, 'have the digest float32:.*; the classifier was trained with float32:'),
    ('wider', MODEL.replace(mlp_dim=28), 'holds another model than the one'),
  ):
    jaxlm.save_huggingface(LanguageModel(config, init(config, jax.random.key(8))), tmp_path / name)
    ByteTokenizer().save(tmp_path / name)
    refused(tmp_path / name, message)


@pytest.mark.slow
def test_a_trained_language_model_begins_as_it_was_and_is_in_the_checkpoint(lm, texts, tmp_path):
  state = run(lm, texts, tmp_path / 'run', '--model.train-lm', '--optimizer.learning-rate', '0', '--run.steps', '1')
  chex.assert_trees_all_equal(jax.device_get(state.params['lm']), jax.device_get(jaxlm.load(lm).params))
  model = jaxlm.load(tmp_path / 'run')
  assert model.lm_params is None and model.config.lm.digest == ''
  assert decoders.classify(model, ['y']).probabilities.shape == (1, 2)


def test_what_cannot_be_read_for_a_classifier_is_named(lm, texts, frozen, tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match='model.max_length=64 is longer than --lm .* reads: 32'):
    run(lm, texts, tmp_path / 'run', '--model.max-length', '64')
  with pytest.raises(ConfigError, match='is a TextClassifier; a classifier reads a model of tokens alone'):
    run(frozen, texts, tmp_path / 'run')
  with pytest.raises(CheckpointError, match='There is no model'):
    run(tmp_path / 'nowhere', texts, tmp_path / 'run')
  reverse = LanguageModel(MODEL.replace(direction='reverse'), jaxlm.load(lm).params, ByteTokenizer())
  for other, message in (
    (reverse, "direction='reverse'; a classifier gives"),
    (LanguageModel(MODEL, {}), 'has no tokenizer'),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(jaxlm, 'load', lambda *_, other=other, **__: other, raising=False)
      with pytest.raises(ConfigError, match=message):
        run(lm, texts, tmp_path / 'run')


def test_states_are_kept_only_if_they_fit_and_are_read(monkeypatch):
  few, many = (EncodedTexts(TokenCorpus(np.zeros(n * 100, np.uint16), np.arange(n + 1) * 100), (), ()) for n in (5, 20))
  given, model = data.Data(many, few, None), classify.ModelFlags(encoder='lm')
  monkeypatch.setattr(data, 'states_of', lambda texts, lm, model: len(texts))

  def kept(megabytes, steps):
    config = classify.ClassifyConfig(
      model=model, lm='x', lm_cache=megabytes, data=classify.ClassDataConfig(batch_size=5),
      run=RunConfig(steps=steps), optimizer=OptimizerConfig(warmup_steps=0),
    )  # fmt: skip
    found = data.with_states(given, LanguageModel(MODEL.replace(model_dim=120), {}), model, config)
    return found.train.states, found.valid.states, found.test

  # 2,500 tokens of 120 numbers with 4 bytes are 1.2 megabytes, and four batches are one pass over 20 texts.
  assert kept(2, 4) == (20, 5, None)
  assert kept(1, 4) == kept(0, 4) == kept(2, 3) == (None, None, None)
  with pytest.raises(ConfigError, match='lm_cache=-1 must not be negative'):
    classify.ClassifyConfig(lm_cache=-1)
