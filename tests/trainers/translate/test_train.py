"""A run of translation learns, resumes bit for bit, is the same on any number of devices, and loads as what it is."""

import dataclasses
import functools
import subprocess
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.errors import DataError
from jaxlm.seq2seq_config import Seq2SeqConfig
from tests.models import slow
from tests.trainers import tiny
from tests.trainers.test_loop import interrupt_at, logged
from trainers import command_line, metrics, translate
from trainers.config import ConfigError, MeshConfig
from trainers.step import Context
from trainers.translate import task as translation

MODEL = Seq2SeqConfig(
  encoder_layers=1, decoder_layers=1, model_dim=16, num_heads=2, mlp_dim=20, max_length=32, dtype='float32'
)  # fmt: skip


MESH = MeshConfig(fsdp=2, tensor=2)


def parse(*args):
  return command_line.parse(translate.PRESETS, 'grammar', prog='translate', description='Translates.', args=args)


def arguments(text, directory, *flags):
  """Returns the command line of a small run, without its model."""
  data = '--data.source', str(text / 'train.tsv'), '--data.valid-source', str(text / 'valid.tsv')
  shape = '--data.tokens', '128', '--data.max-length', '16', '--data.buckets', '2', '--data.row-multiple', '4'
  run = '--run.directory', str(directory), '--run.steps', '8', '--run.eval-every', '4', '--run.save-every', '2'
  quiet = '--run.no-tensorboard', '--run.log-every', '1', '--eval.sentences', '0', '--optimizer.warmup-steps', '2'
  return 'grammar', *data, *shape, *run, *quiet, *flags


def config(text, directory, *flags, mesh=MeshConfig(), model=MODEL):
  return dataclasses.replace(parse(*arguments(text, directory, *flags)), model=model, mesh=mesh)


def test_help_lists_every_section_within_three_seconds():
  best = 99.0
  for _ in range(2):  # The machine may be busy with something else once.
    start = time.monotonic()
    done = subprocess.run(tiny.command('--help', module='trainers.translate'), capture_output=True, text=True)
    best = min(best, time.monotonic() - start)
  assert done.returncode == 0 and best < 3.0
  for name in (
    '--model.markov-order',
    '--data.tokens',
    '--eval.beam-size',
    '--label-smoothing',
    '--start',
    '--distill-from',
    '--distill.beam-size',
    *translate.PRESETS,
  ):
    assert name in done.stdout, name


@pytest.fixture(scope='module')
def whole(text, tmp_path_factory):
  """Returns a function: mesh -> (run directory, last state) of a run that never stopped."""

  @functools.cache
  def run(mesh):
    directory = tmp_path_factory.mktemp('runs') / 'whole'
    return directory, jax.device_get(translate.main(config(text, directory, mesh=mesh)))

  return run


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [MeshConfig(), MESH], ids=['pmap', 'mesh'])
def test_a_resumed_run_is_bit_identical(text, whole, tmp_path, monkeypatch, mesh):
  directory, state = whole(mesh)
  interrupt_at(monkeypatch, 5)
  with pytest.raises(SystemExit):
    translate.main(config(text, tmp_path / 'parts', mesh=mesh))
  monkeypatch.undo()
  chex.assert_trees_all_equal(jax.device_get(translate.main(config(text, tmp_path / 'parts', mesh=mesh))), state)
  assert logged(tmp_path / 'parts') == logged(directory)
  rows = metrics.read(directory)
  assert rows[-1]['valid/loss'] < rows[0]['loss'] and rows[0]['tokens'] > 0


@pytest.mark.slow
def test_a_mesh_gives_the_losses_of_one_device_each_and_the_run_loads(whole):
  losses = [[row['loss'] for row in metrics.read(whole(mesh)[0]) if 'loss' in row] for mesh in (MeshConfig(), MESH)]
  np.testing.assert_allclose(*losses, rtol=1e-5)
  model = jaxlm.load(whole(MeshConfig())[0])
  assert 'Seq2SeqModel(1 + 1 layers x 16' in repr(model)
  target = 'N0 V1 N2'
  assert model.tokenizer.decode_target(model.tokenizer.target.encode(target)) == target


UNROLL = {'markov_order': 2, 'markov_mode': 'unroll', 'position': 'relative'}


@pytest.mark.parametrize(
  'changes', [{}, {'embeddings': 'separate', 'markov_order': 2}, *slow({'output_bias': True}, UNROLL)], ids=str
)
def test_the_loss_is_the_mean_of_the_targets_and_its_chunks_change_nothing(text, tmp_path, changes):
  made = config(text, tmp_path, model=MODEL.replace(**changes))
  train, valid = translation.pairs_of(made.data)
  tokenizers = translation.load_tokenizers(made.data, train, tmp_path)
  model = made.model.replace(
    vocab_size=tokenizers.target.vocab_size, start_id=tokenizers.target.bos_id, eos_id=1, pad_id=2
  )
  task = translation.Translation(dataclasses.replace(made, model=model), tokenizers, train, valid)
  params = jax.jit(task.init_params)(jax.random.key(0))
  if 'output_bias' in params:
    params['output_bias'] = np.arange(model.vocab_size, dtype=np.float32) / 10
  batch = task.batch(0, slice(0, task.batch_size))
  from jaxlm.models import seq2seq

  @jax.jit
  def log_p_of_targets(params, batch):
    lengths = batch['source_mask'].sum(1)
    memory = seq2seq.memory(params, model, seq2seq.encode(params, model, batch['source'], lengths), lengths)
    logits = seq2seq.logits(params, model, seq2seq.hidden(params, model, batch['tokens'], memory)[0])
    return jnp.take_along_axis(jax.nn.log_softmax(logits), batch['targets'][..., None], axis=-1)[..., 0]

  loss = jax.jit(lambda params, batch, key: task.loss(params, batch, Context(0, key)))
  total, weight = loss(params, batch, None)
  np.testing.assert_allclose(total, -(log_p_of_targets(params, batch) * batch['mask']).sum(), rtol=1e-5)
  assert weight == batch['mask'].sum() and loss(params, batch, jax.random.key(1))[0] != total


def test_settings_that_cannot_work_name_both_numbers(text, tmp_path):
  with pytest.raises(ConfigError, match='data.max_length=64 is longer than the model: model.max_length=32'):
    dataclasses.replace(config(text, tmp_path), data=translate.PairDataConfig(max_length=64))
  with pytest.raises(ConfigError, match='data.tokens=100 has no room for data.row_multiple=8 pairs .* 1024 in all'):
    translate.PairDataConfig(tokens=100)
  with pytest.raises(ConfigError, match="two vocabularies: model.embeddings must be 'tied' or 'separate'"):
    translate.TranslateConfig(data=translate.PairDataConfig(joint=False))
  for preset in ('small', 'base'):
    with pytest.raises(ConfigError, match='data.source names no sentence pairs'):
      translate.main(parse(preset))


def test_bad_pairs_are_named_with_their_files(tmp_path, text):
  (tmp_path / 'a.en').write_text('n0\nn1\nn2\n')
  (tmp_path / 'a.de').write_text('N0\nN1\n')
  (tmp_path / 'empty.tsv').write_text('\n\t\n')
  (tmp_path / 'short.tsv').write_text('v0\tV0\n')
  run = lambda source: translate.main(config(text, tmp_path / 'run', '--data.source', f'{tmp_path}/{source}'))
  # The messages begin with what is wrong: the vocabulary has nothing to do with it.
  for source, message in (
    ('a.{en,de}', 'a.en has 3 lines and .*a.de has 2: aligned files have equally many'),
    ('empty.tsv', "'.*empty.tsv' holds no sentence pair with text on both sides"),
    ('short.tsv', 'None of the 24 held-out pairs fits into 2 source and 2 target tokens'),
  ):
    with pytest.raises(DataError, match=f'^(?!data.vocab_size).*{message}'):
      run(source)
  assert not (tmp_path / 'run').exists()


def test_pairs_that_are_left_out_are_counted_by_reason(tmp_path, text):
  examples = (text / 'train.tsv').read_text()
  (tmp_path / 'train.tsv').write_text(f'{examples}\n\tV0\nv0\t\n' + 'n0 ' * 30 + '\tN0\n')
  (tmp_path / 'valid.tsv').write_text((text / 'valid.tsv').read_text() + 'n0 v0\t' + 'N0 ' * 12 + '\n')
  source = '--data.source', f'{tmp_path}/train.tsv', '--data.valid-source', f'{tmp_path}/valid.tsv'
  made = config(text, tmp_path, *source)
  train, valid = translation.pairs_of(made.data)
  tokenizers = translation.load_tokenizers(made.data, train, tmp_path)
  said = translation.Translation(made, tokenizers, train, valid).describe()
  assert '160 sentence pairs' in said and '1 pairs are longer than these and left out. 3 pairs have an empty' in said
  assert 'Held out: 24 pairs' in said and '1 held-out pairs are longer than the training batches' in said
