"""Pretraining forward, in reverse and both: flags, batches, metrics per direction, resuming, samples."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from jaxlm import config as configs
from jaxlm.data import corpus, packing, sources
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.io import checkpoint
from tests.models import slow
from tests.trainers.pretrain.test_train import parse
from tests.trainers.pretrain.test_train import smoke as smoke_from
from tests.trainers.test_loop import interrupt_at, logged
from trainers import metrics, pretrain
from trainers.config import ConfigError
from trainers.pretrain import task as language_modeling

WHOLE = slice(0, 8)


@pytest.fixture
def text(tmp_path, monkeypatch):
  """A folder with documents of a few sentences."""
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  words = 'one two three four five six seven eight nine ten'.split()
  document = lambda i: '. '.join(' '.join(words[j % 10 :] + words[: j % 10]) for j in range(i, i + 1 + i % 3))
  for name, n in (('train', 200), ('short', 20), ('valid', 12)):
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(json.dumps({'text': document(i)}) for i in range(n)))
  return tmp_path


def smoke(text, *flags, name='run', train='train'):
  source = '--data.source', str(text / f'{train}.jsonl'), '--data.valid-source', str(text / 'valid.jsonl')
  return smoke_from(text, *source, *flags, name=name)


def task_of(config, tokenizer=None):
  return language_modeling.LanguageModeling(config, tokenizer or ByteTokenizer())


def test_flags(capsys):
  config = parse('smoke', '--direction', 'both', '--reverse.share', '0.3', '--reverse.signal', 'token')
  assert (config.direction, config.reverse) == ('both', pretrain.ReverseConfig(share=0.3, signal='token'))
  assert parse('smoke').direction == 'forward' and parse('smoke').reverse == pretrain.ReverseConfig()
  for flags, message in (
    (('--direction', 'backward'), 'reverse'),
    (('--direction', 'reverse', '--reverse.share', '0.3'), "share=0.3isfordirection='both'"),
    (('--reverse.signal', 'bos'), "signal='bos'isfordirection='reverse'or'both'"),
    (('--direction', 'both', '--reverse.share', '1.3'), 'share=1.3'),
    (('--direction', 'both', '--reverse.pairing', 'duplicate', '--reverse.share', '0.4'), 'alwaysahalf'),
    (('--direction', 'both', '--data.packing', 'concat', '--data.replace', 'fixed'), "replace='fixed'needsdirection='for"),
    (('--direction', 'reverse', '--data.packing', 'concat', '--model.prefix', '3'), "prefix=3needsdirection='forward'"),
    (('--model.direction', 'both'), "itissetby--direction"),
  ):  # fmt: skip
    with pytest.raises(SystemExit):
      parse('smoke', *flags)
    said = ''.join(''.join(capsys.readouterr()).replace('│', ' ').split())  # Wrapped to a terminal's width.
    assert message in said, said
  with pytest.raises(ConfigError, match="direction 'backwards'"):
    dataclasses.replace(parse('smoke'), direction='backwards')


def test_forward_batches_are_what_they_were(text):
  config = smoke(text)
  task = task_of(config)
  source = sources.documents(str(text / 'train.jsonl'), field='text', download=False)
  shape = dict(batch_size=8, length=32, mode='documents')
  expected = packing.make_batches(corpus.tokenize(source, ByteTokenizer()), seed=0, **shape)
  for step in (0, 7, 1000):
    chex.assert_trees_all_equal(task.batch(step, WHOLE), expected.batch(step))
  assert list(task.held_out) == ['forward']
  assert all('reversed' not in batch for batch in task.eval_batches(WHOLE))


@pytest.mark.parametrize('packing', ['documents', 'concat'])
def test_batches_are_in_their_directions(text, packing):
  flags = '--data.packing', packing
  read = lambda *more: task_of(smoke(text, *flags, *more))
  reverse = read('--direction', 'reverse')
  batch = reverse.batch(0, WHOLE)
  assert ('segments' in batch) == (packing == 'documents')
  seen = bytes(int(i) for i in batch['tokens'].ravel() if i < 256).decode()
  assert 'eerht owt' in seen and 'two three' not in seen
  both = read('--direction', 'both', '--reverse.signal', 'token')
  batch = both.batch(0, WHOLE)
  assert {259, 260} <= set(batch['tokens'].ravel().tolist()) and batch['tokens'].max() == 260
  assert not np.isin(batch['targets'][batch['mask'] > 0], (259, 260)).any()
  ways = [(b['reversed'][0], b['mask'].sum(), np.sort(b['targets'].ravel()).tolist()) for b in both.eval_batches(WHOLE)]
  assert [way for way, _, _ in ways] == [0, 0, 1, 1]
  assert [n for _, n, _ in ways[:2]] == [n for _, n, _ in ways[2:]]


@pytest.mark.slow
def test_a_run_of_both_reports_each_direction_and_shows_samples_of_both(text, capsys):
  flags = '--direction', 'both', '--reverse.signal', 'token', '--eval.prompts', 'one two', '--run.steps', '12'
  pretrain.main(smoke(text, *flags))
  valid = [row for row in metrics.read(text / 'run') if 'valid/loss' in row][-1]
  mean = (valid['valid/loss_forward'] + valid['valid/loss_reverse']) / 2
  assert valid['valid/loss'] == pytest.approx(mean, rel=1e-5)
  assert valid['valid/loss_forward'] != valid['valid/loss_reverse']
  out = capsys.readouterr().out
  assert "'one two' -> " in out and "<- 'one two'" in out and 'loss_reverse' in out
  lm_config, params, tokenizer = checkpoint.load_run(text / 'run')
  assert (lm_config.direction, lm_config.direction_signal) == ('both', 'token')
  assert lm_config.vocab_size == tokenizer.vocab_size + 2 == 261 == params['head'].shape[1]
  with pytest.raises(ValueError, match="model.direction = 'both'; it cannot be resumed with 'reverse'"):
    pretrain.main(smoke(text, '--direction', 'reverse', '--run.steps', '14'))


def test_the_loss_of_a_reverse_run_is_of_reverse_text(text):
  config = smoke(text, '--direction', 'reverse', '--eval.sample-tokens', '0', '--run.steps', '4')
  pretrain.main(config)
  rows = [row for row in metrics.read(text / 'run') if 'valid/loss' in row]
  assert not any('loss_reverse' in name for name in rows[-1])
  lm_config, params, tokenizer = checkpoint.load_run(text / 'run')
  assert (lm_config.direction, lm_config.vocab_size) == ('reverse', 259)
  task = task_of(dataclasses.replace(config, model=lm_config), tokenizer)
  batches = list(task.eval_batches(WHOLE))
  assert any(b'eerht' in bytes(i for i in row if i < 256) for row in batches[0]['tokens'].tolist())
  sums = [language_modeling.next_token_loss(params, batch, lm_config) for batch in batches]
  loss = sum(float(s[0]) for s in sums) / sum(float(s[1]) for s in sums)
  assert rows[-1]['valid/loss'] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('pairing', ['independent', *slow('duplicate')])
def test_a_stopped_and_resumed_run_is_bit_identical(text, monkeypatch, pairing):
  flags = '--direction', 'both', '--reverse.pairing', pairing, '--eval.sample-tokens', '0', '--run.no-tensorboard'
  flags = (*flags, '--data.length', '64', '--run.log-every', '1', '--run.eval-every', '6', '--run.steps', '12')
  config = lambda name: smoke(text, *flags, name=name, train='short')
  assert task_of(config('whole')).batches.steps_per_epoch < 11
  whole = pretrain.main(config('whole'))
  interrupt_at(monkeypatch, 5)
  with pytest.raises(SystemExit):
    pretrain.main(config('parts'))
  assert checkpoint.steps(text / 'parts' / 'checkpoints')[-1] == 5
  monkeypatch.undo()
  monkeypatch.setenv('JAXLM_CACHE', str(text / 'another cache'))
  parts = pretrain.main(config('parts'))
  chex.assert_trees_all_equal(jax.device_get(parts), jax.device_get(whole))
  assert logged(text / 'parts') == logged(text / 'whole')


def test_a_tokenizer_without_bos_uses_eos_and_one_without_either_is_refused(text):
  tokenizer = ByteTokenizer()
  tokenizer.bos_id, tokenizer.fingerprint = None, 'no bos'
  batch = task_of(smoke(text, '--direction', 'reverse'), tokenizer).batch(0, WHOLE)
  assert 256 not in batch['tokens'] and 257 in batch['tokens']
  tokenizer.eos_id = None
  with pytest.raises(ConfigError, match="direction='reverse': This tokenizer has no EOS"):
    task_of(smoke(text, '--direction', 'reverse'), tokenizer)


def test_runs_from_before_the_fields_load_and_go_on(text, capsys):
  flags = '--eval.sample-tokens', '0', '--run.steps', '3', '--optimizer.warmup-steps', '1'
  config = smoke(text, *flags)
  pretrain.main(config)
  path = text / 'run' / 'config.json'
  old = json.loads(path.read_text())
  for name in ('direction', 'reverse'):
    del old[name]
  for name in ('direction', 'direction_signal'):
    del old['model'][name]
  path.write_text(json.dumps(old))
  loaded = checkpoint.load_run(text / 'run')[0]
  assert (loaded.direction, loaded.direction_signal) == ('forward', 'none')
  capsys.readouterr()
  pretrain.main(smoke(text, *flags[:2], '--run.steps', '5', '--optimizer.warmup-steps', '1'))
  assert 'Changed since this run began: run.steps 3 -> 5\n' in capsys.readouterr().out


def test_a_signal_needs_a_direction_and_room():
  with pytest.raises(ValueError, match="direction_signal='bos' needs direction='reverse'"):
    configs.ModelConfig(direction_signal='bos')
  with pytest.raises(ValueError, match='vocab_size=2 leaves no room'):
    configs.ModelConfig(vocab_size=2, direction='both', direction_signal='token')
