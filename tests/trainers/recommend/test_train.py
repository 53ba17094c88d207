"""The stages follow each other, resume bit for bit, and leave recommenders that know their items."""

import dataclasses
import json
import shutil
import subprocess

import chex
import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.data import catalogue
from jaxlm.data.catalogue import Catalogue
from jaxlm.errors import CheckpointError, DataError
from jaxlm.io import checkpoint
from tests.trainers import tiny
from tests.trainers.recommend.runs import draft, ids, parse, target
from tests.trainers.test_loop import interrupt_at, logged
from trainers import metrics, recommend
from trainers.config import ConfigError
from trainers.recommend import train


def test_help_lists_stages_and_flags():
  done = subprocess.run(tiny.command('--help', module='trainers.recommend'), capture_output=True, text=True)
  assert done.returncode == 0
  for name in ('--target', '--loss.name', '--beams.count', '--eval.gamma', '--model.num-layers', *recommend.PRESETS):
    assert name in done.stdout, name
  assert '--model.vocab-size' not in done.stdout and 'what is missing is made first' in ' '.join(done.stdout.split())
  assert parse().run.directory == 'runs/recommend-draft' and parse('target').run.directory == 'runs/recommend-target'


@pytest.mark.parametrize(
  'name, stage, expected',
  [
    ('recommend-draft', 'target', 'recommend-target'), ('films-draft-2', 'target', 'films-target-2'),
    ('tiny', 'target', 'tiny-target'), ('x-target', 'ids', 'x-ids'), ('target-of-my-draft', 'ids', 'target-of-my-ids'),
  ],
)  # fmt: skip
def test_runs_of_one_chain_lie_beside_each_other(name, stage, expected):
  assert train.neighbour(f'runs/{name}', stage).as_posix() == f'runs/{expected}'


def test_a_target_is_measured_selected_and_loads_with_its_items(target_run, ids_run):
  directory, state = target_run
  lm = jaxlm.load(directory)
  assert isinstance(lm.tokenizer, Catalogue) and lm.config.vocab_size == lm.tokenizer.vocab_size
  assert lm.config.max_length == lm.tokenizer.longest_prompt + lm.tokenizer.depth
  rows = [row for row in metrics.read(directory) if 'valid/loss' in row]
  assert [row['step'] for row in rows] == [3, 6] and all(0 <= row['valid/ndcg@5'] <= 1 for row in rows)
  found = json.loads((directory / 'recommendation.json').read_text())
  best = max(rows, key=lambda row: row['valid/ndcg@5'])
  assert found['selected_step'] == best['step']
  chex.assert_trees_all_equal(
    jax.device_get(lm.params), checkpoint.load_run(directory, 'float32', step=found['selected_step'])[1]
  )
  assert set(found['metrics']) == {'users', 'popularity', 'bigram', 'model'}
  assert set(found['metrics']['model']) == {f'{m}@{k}' for m in ('recall', 'ndcg') for k in (1, 3, 5)}
  losses = [row['loss'] for row in metrics.read(directory) if 'loss' in row]
  assert len(losses) == 6 and losses[-1] < losses[0]
  assert json.loads((directory / 'config.json').read_text())['ids'] == str(ids_run)


@pytest.mark.slow
def test_a_resumed_target_is_bit_identical(target_run, ids_run, tmp_path, monkeypatch):
  interrupt_at(monkeypatch, 4)
  with pytest.raises(SystemExit):
    recommend.main(target(ids_run, tmp_path / 'parts'))
  monkeypatch.undo()
  state = recommend.main(target(ids_run, tmp_path / 'parts'))
  chex.assert_trees_all_equal(jax.device_get(state), target_run[1])
  assert logged(tmp_path / 'parts') == logged(target_run[0])


@pytest.mark.slow
def test_a_resumed_draft_is_bit_identical_and_goes_on_with_its_beams(draft_run, target_run, tmp_path, monkeypatch):
  directory, state = draft_run
  interrupt_at(monkeypatch, 4)
  with pytest.raises(SystemExit):
    recommend.main(draft(target_run[0], tmp_path / 'parts'))
  monkeypatch.undo()
  chex.assert_trees_all_equal(jax.device_get(recommend.main(draft(target_run[0], tmp_path / 'parts'))), state)
  assert logged(tmp_path / 'parts') == logged(directory)
  assert (tmp_path / 'parts' / 'beams.jsonl').read_text() == (directory / 'beams.jsonl').read_text()


@pytest.mark.slow
def test_a_mesh_gives_the_losses_of_one_device_each(draft_run, target_run, tmp_path):
  mesh = '--mesh.fsdp', '2', '--mesh.tensor', '2', '--beams.file', str(draft_run[0] / 'beams.jsonl')
  recommend.main(draft(target_run[0], tmp_path / 'mesh', *mesh))
  rows = [[row for row in metrics.read(directory) if 'loss' in row] for directory in (tmp_path / 'mesh', draft_run[0])]
  for name in ('loss', 'ce', 'atspeed-s'):
    np.testing.assert_allclose(*([row[name] for row in run] for run in rows), rtol=2e-4, err_msg=name)


def test_a_draft_is_measured_by_its_accepted_steps(draft_run, target_run):
  directory, _ = draft_run
  draft_lm, lm = jaxlm.load(directory), jaxlm.load(target_run[0])
  assert draft_lm.tokenizer.digest == lm.tokenizer.digest
  rows = [row for row in metrics.read(directory) if 'valid/loss' in row]
  assert [row['step'] for row in rows] == [3, 6] and all(0 <= row['valid/accept_steps'] <= 1 for row in rows)
  found = json.loads((directory / 'recommendation.json').read_text())['metrics']
  assert set(found) == {'users', 'strict', 'relaxed'} and found['users'] > 8 and 0 <= found['strict'] <= 1
  first = next(row for row in metrics.read(directory) if 'loss' in row)
  assert first['loss'] == pytest.approx(0.5 * first['ce'] + 0.5 * first['atspeed-s'], rel=1e-5)


def test_a_run_is_not_resumed_with_other_identifiers_or_histories(target_run, ids_run, tmp_path):
  other = tmp_path / 'x-ids'
  recommend.main(ids(other, '--data.seed', '1', '--ids.no-unique', '--ids.sizes', '20', '8'))
  shutil.copytree(target_run[0], tmp_path / 'copy')
  with pytest.raises(CheckpointError, match='identifiers|vocab_size|max_length'):
    recommend.main(target(other, tmp_path / 'copy'))
  with pytest.raises(DataError, match=r'--target .* and --ids .* have other identifiers'):
    recommend.main(draft(target_run[0], tmp_path / 'draft', '--ids', str(other)))


def test_a_run_does_not_start_from_the_parameters_of_other_identifiers(target_run, draft_run, ids_run, tmp_path):
  """The items are the same, in another order, so that only the digests tell the two apart."""
  shutil.copytree(target_run[0], tmp_path / 'start')
  items = catalogue.load(ids_run / 'tokenizer')
  other = dataclasses.replace(items, tokens=items.tokens[::-1])
  shutil.rmtree(tmp_path / 'start' / 'tokenizer')
  other.save(tmp_path / 'start' / 'tokenizer')
  start = '--start', str(tmp_path / 'start')
  message = rf'--start .*start and --ids .*x-ids have other identifiers: .*{other.digest}.*{items.digest}'
  with pytest.raises(DataError, match=message):
    recommend.main(target(ids_run, tmp_path / 'new', *start))
  with pytest.raises(DataError, match=message):
    recommend.main(draft(target_run[0], tmp_path / 'draft', *start))
  assert not (tmp_path / 'new').exists() and not (tmp_path / 'draft').exists()


@pytest.mark.slow
def test_a_run_starts_from_the_parameters_of_another_with_the_same_identifiers(target_run, ids_run, tmp_path):
  directory, state = target_run
  recommend.main(target(ids_run, tmp_path / 'new', '--start', str(directory), '--optimizer.learning-rate', '1e-9'))
  params = checkpoint.load_run(tmp_path / 'new', 'float32', step=2)[1]
  chex.assert_trees_all_close(jax.device_get(params), checkpoint.load_run(directory, 'float32')[1], atol=1e-5)


def test_sasrec_is_not_trained_on_identifiers_of_several_tokens(ids_run, tmp_path):
  flags = '--ids', str(ids_run), '--run.directory', str(tmp_path / 'sasrec')
  with pytest.raises(ConfigError, match='has identifiers of 2 tokens.* python -m trainers.recommend ids-sasrec'):
    recommend.main(parse('sasrec', *flags))
  assert not (tmp_path / 'sasrec').exists()


def test_targets_that_are_none_are_refused(ids_run, target_run, tmp_path):
  with pytest.raises(CheckpointError, match='--target .*x-ids'):
    recommend.main(draft(ids_run, tmp_path / 'draft'))
  with pytest.raises(ConfigError, match="Unknown target_preset 'ids'"):
    recommend.main(parse('tiny', '--run.directory', str(tmp_path / 'draft'), '--target-preset', 'ids'))
  with pytest.raises(CheckpointError, match='it cannot be resumed with --start'):
    recommend.main(target(ids_run, target_run[0], '--start', str(tmp_path)))


def test_settings_that_cannot_work_are_named():
  for kind, field, value, message in (
    (recommend.LossConfig, 'alpha', 2, 'loss.alpha=2 must be within'),
    (recommend.LossConfig, 'tau', 0, 'loss.tau=0 must be a positive number'),
    (recommend.LossConfig, 'top_k', 0, 'loss.top_k=0'),
    (recommend.BeamConfig, 'count', 0, 'beams.count=0'),
    (recommend.BeamConfig, 'file', 'a.txt', "beams.file='a.txt' is a JSON Lines file"),
    (recommend.EvalConfig, 'users', 0, 'eval.users=0'),
    (recommend.SpeedConfig, 'beam', 3, 'eval.beam=3 must be at least eval.k=10'),
    (recommend.SpeedConfig, 'gamma', 0, 'eval.gamma=0'),
    (recommend.RowConfig, 'batch_size', 0, 'data.batch_size=0'),
  ):
    with pytest.raises(ConfigError, match=message):
      kind(**{field: value})
