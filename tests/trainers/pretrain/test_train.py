"""The command line of pretraining, its presets, and a smallest run from text to samples."""

import dataclasses
import json
import re
import subprocess
import sys
import time

import jax
import pytest

from jaxlm.config import DropoutConfig
from tests.trainers import tiny
from trainers import command_line, metrics, pretrain
from trainers.config import ConfigError
from trainers.pretrain import task as language_modeling
from trainers.step import Context

ALL_FIELDS = [
  f'--{part.name}.{field.name}'.replace('_', '-')
  for part in dataclasses.fields(pretrain.PretrainConfig)
  if dataclasses.is_dataclass(part.default)
  for field in dataclasses.fields(part.type if isinstance(part.type, type) else type(part.default))
  if field.name not in ('rope', 'sink')
]


def parse(*args):
  return command_line.parse(pretrain.PRESETS, 'embedded', prog='pretrain', description='Pretrains.', args=args)


def test_help_lists_every_field_within_three_seconds_and_without_jax():
  best = 99.0
  for _ in range(2):  # The machine may be busy with something else once.
    start = time.monotonic()
    done = subprocess.run(tiny.command('--help', module='trainers.pretrain'), capture_output=True, text=True)
    best = min(best, time.monotonic() - start)
  assert done.returncode == 0 and best < 3.0
  missing = [
    name
    for name in (*ALL_FIELDS, '--direction', '--start', '--model.rope.theta', '--model.sink.kind')
    if name not in done.stdout
  ]
  assert not missing
  assert all(name in done.stdout for name in pretrain.PRESETS) and '(default: 0.002)' in done.stdout
  code = 'import sys, trainers.pretrain; print("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'


def test_unknown_presets_and_flags_suggest_the_nearest(capsys):
  with pytest.raises(SystemExit) as e:
    parse('sink-60')
  assert e.value.code == 2 and "Did you mean 'sink-60m'?" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    parse('smoke', '--optimizer.learning-rat', '1')
  assert '--optimizer.learning-rate' in ''.join(capsys.readouterr())
  with pytest.raises(SystemExit):
    parse('smoke', '--model.attention', 'sigmiod')
  assert 'sigmoid' in ''.join(capsys.readouterr())


def test_combinations_that_cannot_work_are_errors_with_both_numbers(capsys):
  with pytest.raises(SystemExit) as e:
    parse('smoke', '--data.length', '100')
  # The message is wrapped to the width of a terminal.
  shown = re.sub(r'[\s│]+', '', ''.join(capsys.readouterr()))
  assert e.value.code == 2 and re.search('data.length=100.*max_length=64', shown), shown
  with pytest.raises(ConfigError, match='valid_fraction=1.5'):
    pretrain.DataConfig(valid_fraction=1.5)


def test_presets_and_flags():
  config = parse('sink-60m', '--model.attention', 'sigmoid', '--data.source', 'x.txt')
  assert (config.model.attention, config.data.source, config.run.directory) == ('sigmoid', 'x.txt', 'runs/sink-60m')
  assert (config.model.num_layers, config.model.mlp_dim, config.optimizer.learning_rate) == (10, 1536, 4e-4)
  assert config.data.batch_size * config.data.length == 2**20
  assert parse().run.directory == 'runs/embedded' and parse('--run.steps', '50').run.steps == 50
  assert parse('smoke', '--model.windows', '8', '0').model.windows == (8, 0)
  dropout = '--model.dropout.residual', '0.1', '--model.dropout.attention', '0.2', '--model.dropout.mlp', '0.3'
  model = parse('smoke', '--model.init', 'normal', '--model.init-std', '0.01', *dropout).model
  assert (model.init, model.init_std, model.dropout) == ('normal', 0.01, DropoutConfig(0.1, 0.2, 0.3))


@pytest.fixture
def text(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  words = 'one two three four five six seven eight nine ten'.split()
  lines = '\n\n'.join(' '.join(words[i % 10 :] + words[: i % 10]) + '.' for i in range(400))
  (tmp_path / 'text.txt').write_text(lines)
  (tmp_path / 'valid.txt').write_text(lines[:3000])
  return tmp_path


def smoke(text, *flags, name='run'):
  source = '--data.source', str(text / 'text.txt'), '--data.valid-source', str(text / 'valid.txt')
  shape = '--model.num-layers', '1', '--run.directory', str(text / name), '--data.batch-size', '8'
  return parse('smoke', *source, *shape, *flags)


@pytest.mark.parametrize('attention, packing', [('softmax', 'documents'), ('sigmoid', 'concat')])
def test_a_run_learns_and_leaves_all_that_a_reader_needs(text, capsys, attention, packing):
  from jaxlm.io import checkpoint

  config = smoke(text, '--model.attention', attention, '--data.packing', packing, '--eval.prompts', 'one two')
  pretrain.main(config)
  rows = metrics.read(text / 'run')
  valid = [row for row in rows if 'valid/loss' in row]
  assert valid[-1]['valid/loss'] < rows[0]['loss'] - 1.0
  assert 0 < valid[-1]['valid/bits_per_byte'] < 8 and valid[-1]['valid/perplexity'] > 1
  assert rows[0]['learning_rate'] == 0.0 and rows[-2]['learning_rate'] > 0
  out = capsys.readouterr().out
  for expected in (
    'Parameters: ',
    'Memory per device',
    'Devices: 4',
    'model.attention = ' + attention,
    "'one two' -> ",
  ):
    assert expected in out
  assert f'python -m decoders.generate {text / "run"} --prompt "one two"' in out
  saved = json.loads((text / 'run' / 'config.json').read_text())
  model, params, tokenizer = checkpoint.load_run(text / 'run')
  assert model.vocab_size == saved['model']['vocab_size'] == tokenizer.vocab_size == params['head'].shape[1]


@pytest.mark.slow
def test_samples_of_each_evaluation_are_shown_and_say_how_much_is_repeated(text, capsys):
  from jaxlm.io import checkpoint

  flags = (
    '--eval.samples',
    'each',
    '--eval.prompts',
    'one two',
    '--eval.sample-tokens',
    '12',
    '--label-smoothing',
    '0.2',
  )
  config = smoke(text, *flags, '--run.steps', '6', '--run.eval-every', '3', '--run.best-metric', 'repetition')
  state = pretrain.main(config)
  valid = [row for row in metrics.read(text / 'run') if 'valid/loss' in row]
  assert len(valid) == 2 and all(0 <= row['valid/repetition'] <= 1 for row in valid)
  shown = capsys.readouterr().out
  assert shown.count("'one two' -> ") == 3 and 'repetition' in shown  # Two evaluations, and the end of the run.
  # Training is measured with the softened targets, evaluation without.
  model, _, tokenizer = checkpoint.load_run(text / 'run')
  task = language_modeling.LanguageModeling(dataclasses.replace(config, model=model), tokenizer)
  batch = task.batch(0, slice(0, 8))
  plain, soft = (task.loss(state.params, batch, Context(0, key))[0] for key in (None, jax.random.key(0)))
  assert soft > plain + 1


def test_repetition_is_the_share_of_ngrams_seen_before():
  from trainers.pretrain.samples import repetition

  assert repetition([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 0.0  # Rows do not repeat each other.
  assert repetition([[7] * 8]) == 4 / 5 and repetition([[1, 2, 1, 2, 1, 2]]) == 1 / 3
  assert repetition([[1, 2]]) == 0.0


@pytest.mark.slow
def test_sinks_are_logged_while_a_model_trains_on_replaced_tokens_with_a_key_bias(text):
  flags = '--eval.sinks', '--data.packing', 'concat', '--data.replace', 'fixed', '--data.fraction', '0.5'
  sink = '--model.sink.kind', 'k', '--model.attention', 'sigmoid_norm', '--model.position', 'alibi'
  config = smoke(text, *flags, *sink, '--eval.sample-tokens', '0', '--run.steps', '6', '--run.eval-every', '3')
  pretrain.main(config)
  valid = [row for row in metrics.read(text / 'run') if 'valid/loss' in row]
  assert len(valid) == 2
  for name in ('sink_slot', *(f'sink_{k}' for k in range(1, 11)), 'sink_raw_1'):
    assert all(0 <= row[f'valid/{name}'] <= 1 for row in valid)
  assert all(0 < row['valid/row_mass'] < 1.01 and row['valid/hidden_ratio_layer_1'] > 0 for row in valid)
  assert (text / 'run' / 'sinks.png').read_bytes().startswith(b'\x89PNG')
  task = language_modeling.LanguageModeling(config, language_modeling.load_tokenizer(config.data, text / 'run'))
  assert (task.batch(0, slice(0, 8))['tokens'][:, 0] == 1).all()
  whole = dataclasses.replace(config, data=dataclasses.replace(config.data, fraction=1.0))
  full = language_modeling.LanguageModeling(whole, task.tokenizer).batches
  assert task.batches.windows == -(-full.windows // 2)
  epoch = [task.batches.window_indices(step) for step in range(task.batches.windows // 8)]
  assert len(set(sum(epoch, []))) == len(sum(epoch, []))  # No window twice in an epoch.


def test_a_prefix_is_not_to_be_predicted(text):
  flags = '--data.packing', 'concat', '--model.prefix', '5'
  config = smoke(text, *flags)
  task = language_modeling.LanguageModeling(config, language_modeling.load_tokenizer(config.data, text / 'run'))
  for batch in (task.batch(0, slice(0, 8)), next(iter(task.eval_batches(slice(0, 8))))):
    assert (batch['mask'][0, :4] == 0).all() and (batch['mask'][0, 4:] == 1).all()
  with pytest.raises(ConfigError, match="model.prefix=5 needs data.packing='concat'"):
    smoke_config = dataclasses.replace(config.data, packing='documents')
    dataclasses.replace(config, data=smoke_config)


def test_the_papers_setting_is_table_2_2():
  config = parse('sink-60m')
  o, m, d, r = config.optimizer, config.model, config.data, config.run
  assert (o.learning_rate, o.schedule, o.warmup_steps, o.clip_norm) == (4e-4, 'constant', 100, 1.0)
  assert (o.beta1, o.beta2, o.eps, o.weight_decay, o.decay_exempt) == (0.9, 0.95, 1e-8, 0.1, ())
  assert (m.num_layers, m.num_heads, m.num_kv_heads, m.head_dim, m.model_dim, m.mlp_dim) == (10, 8, 8, 96, 768, 1536)
  assert (m.norm, m.norm_eps, m.rope.theta, m.tied_embeddings, m.vocab_size) == ('rmsnorm', 1e-5, 1e4, False, 50432)
  assert (d.batch_size, d.length, d.packing, r.steps, r.seed, config.eval.batches) == (
    512,
    2048,
    'concat',
    20_000,
    3406,
    50,
  )
  assert parse('sink-60m', '--optimizer.schedule', 'cosine').optimizer.schedule == 'cosine'
  large = parse('sink-1b')
  assert (large.model.num_layers, large.model.num_heads, large.model.mlp_dim, large.run.steps) == (22, 16, 5632, 40_000)


def test_a_tokenizer_is_trained_once_and_kept_with_the_run(text):
  config = smoke(text, '--data.tokenizer', 'train', '--data.vocab-size', '300')
  trained = language_modeling.load_tokenizer(config.data, text / 'run')
  assert trained.vocab_size == 300
  trained.save(text / 'run' / 'tokenizer')
  held = language_modeling.load_tokenizer(config.data, text / 'run')
  assert held.encode('one two') == trained.encode('one two')
  with pytest.raises(ConfigError, match='data.vocab_size=30000'):
    language_modeling.load_tokenizer(dataclasses.replace(config.data, vocab_size=30000), text / 'other')


def test_memory_estimate_counts_parameters_gradients_and_adam(capsys):
  import jax

  from jaxlm.models.transformer import abstract_params, count_params
  from trainers import distributed, report
  from trainers.config import MeshConfig
  from trainers.step import init_state

  tx = tiny_optimizer()
  n = count_params(abstract_params(tiny.MODEL)) * 4
  layout = distributed.make_layout(MeshConfig())
  state = layout.abstract(lambda: init_state(tiny.make_task(tiny.TinyConfig()).init_params(jax.random.key(0)), tx))
  assert report.nbytes_per_device(state.params) == n
  assert 2 * n <= report.nbytes_per_device(state.opt_state) <= 2 * n + 64
  split = distributed.make_layout(MeshConfig(fsdp=4))
  state = split.abstract(lambda: init_state(tiny.make_task(tiny.TinyConfig()).init_params(jax.random.key(0)), tx))
  assert n / 4 <= report.nbytes_per_device(state.params) < n / 2


def tiny_optimizer():
  from trainers.optimizer import make_optimizer

  return make_optimizer(tiny.TinyConfig().optimizer, 8).tx
