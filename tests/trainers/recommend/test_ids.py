"""Stage ids keeps items, identifiers and histories; every kind of identifier can be had; other settings are refused."""

import json

import numpy as np
import pytest

import jaxlm
from jaxlm.data import interactions, recommendation, semantic_ids
from jaxlm.data.items import Items
from jaxlm.errors import CheckpointError, DataError
from tests.trainers.recommend.runs import ids
from trainers import recommend
from trainers.config import ConfigError
from trainers.recommend import ids as stage
from trainers.recommend.config import IdConfig


def test_a_run_holds_what_the_next_stages_need(ids_run, capsys):
  data = stage.load(ids_run)
  opened = recommendation.open_data('made-tiny')
  assert data.catalogue.item_ids == opened.items.ids and data.catalogue.titles == opened.items.titles
  assert data.histories.digest == interactions.split(opened.log, shares=(0.8, 0.9)).digest
  assert data.catalogue.report.surplus == 0 and data.catalogue.depth == 2 and data.catalogue.history == 4
  codes, _ = semantic_ids.residual_kmeans(opened.items.vectors, (16,))
  assert [data.catalogue.pieces[token] for token in data.catalogue.tokens[:, 0]] == [
    f'<a_{code}>' for code in codes[:, 0]
  ]
  before = (ids_run / 'tokenizer' / 'tokens.npy').stat().st_mtime_ns
  assert recommend.main(ids(ids_run)).digest == data.catalogue.digest
  assert (ids_run / 'tokenizer' / 'tokens.npy').stat().st_mtime_ns == before
  assert 'trainers.recommend target --ids' in capsys.readouterr().out


def test_a_stage_that_was_interrupted_is_done_again(ids_run, tmp_path, monkeypatch):
  def interrupted(*args, **more):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(semantic_ids, 'residual_kmeans', interrupted)
    with pytest.raises(KeyboardInterrupt):
      recommend.main(ids(tmp_path / 'run'))
  assert recommend.main(ids(tmp_path / 'run')).digest == stage.load(ids_run).catalogue.digest


def test_other_settings_and_other_folders_are_refused(ids_run, target_run, tmp_path):
  with pytest.raises(CheckpointError, match=r'was made with ids.sizes.* pass another --run.directory'):
    recommend.main(ids(ids_run, '--ids.sizes', '4', '4'))
  with pytest.raises(CheckpointError, match="is a run of 'recommend', not of stage ids"):
    recommend.main(ids(target_run[0]))
  with pytest.raises(CheckpointError, match="is a run of 'recommend', not of stage ids"):
    stage.load(target_run[0])
  (tmp_path / 'note.txt').write_text('mine')
  with pytest.raises(CheckpointError, match='not a run directory, and nothing is overwritten'):
    recommend.main(ids(tmp_path))
  with pytest.raises(CheckpointError, match='holds no identifiers. Make them'):
    stage.load(tmp_path / 'nothing')
  with pytest.raises(CheckpointError):
    jaxlm.load(ids_run)


@pytest.mark.parametrize(
  'flags, levels',
  [
    (('--ids.method', 'items'), 1),
    (('--ids.method', 'titles', '--ids.words', '2'), 3),
    (('--ids.features', 'words'), 2),
    (('--ids.no-unique',), 1),
  ],
)
def test_kinds_of_identifiers(tmp_path, flags, levels):
  found = recommend.main(ids(tmp_path / 'run', *flags))
  assert found.depth == levels and (found.report.surplus > 0) == ('--ids.no-unique' in flags)
  if 'titles' in flags:
    assert [found.pieces[t] for t in found.tokens[3, :2]] == found.titles[3].split()[:2]


def test_identifiers_of_a_file_and_items_that_it_lacks(tmp_path):
  (tmp_path / 'log.csv').write_text('user,item,time\n' + ''.join(f'u{n % 2},i{n // 2 % 6},{n}\n' for n in range(12)))
  path = tmp_path / 'ids.json'
  path.write_text(json.dumps({f'i{n}': ['<a_1>', f'<b_{n // 2}>'] for n in range(5)}))
  flags = '--data.source', str(tmp_path / 'log.csv'), '--ids.method', 'file', '--ids.file', str(path)
  flags += '--data.split', 'leave-one-out'
  with pytest.raises(DataError, match='1 of 6 items of the log are not in the file of identifiers .*: i5'):
    recommend.main(ids(tmp_path / 'run', *flags))
  found = recommend.main(ids(tmp_path / 'run', *flags, '--data.missing', 'skip', '--ids.no-unique'))
  assert len(found) == 5 and found.report.sharing == 4
  one = found.find(['i2'])[0]
  assert [found.pieces[t] for t in found.tokens[one]] == ['<a_1>', '<b_1>']


def test_features_must_be_there():
  items = Items(('a', 'b'), ('Heat', 'Up'), ('Heat', 'Up'))
  with pytest.raises(DataError, match='these items have texts only'):
    stage.features(IdConfig(features='vectors'), items)
  with pytest.raises(DataError, match='No two items share a word'):
    stage.features(IdConfig(), items)
  with pytest.raises(DataError, match="ids.lm='nowhere' cannot embed the items"):
    stage.features(IdConfig(features='lm', lm='nowhere'), items)
  shared = stage.features(IdConfig(), Items(*[('a', 'b', 'c')] * 2, ('war film', 'war film', 'love film')))
  np.testing.assert_allclose(shared[0], shared[1], atol=1e-6)
  assert np.abs(shared[0] - shared[2]).max() > 0.1


def test_settings_that_cannot_work_are_named():
  for flags, message in (
    (dict(method='file'), "ids.file='' is for ids.method='file'"),
    (dict(sizes=()), r'ids.sizes=\(\) must be one or several'),
    (dict(history=0), 'ids.history=0 must be at least 1'),
  ):
    with pytest.raises(ConfigError, match=message):
      IdConfig(**flags)
  with pytest.raises(ConfigError, match='data.valid_share=0.6 and data.test_share=0.5'):
    recommend.LogConfig(valid_share=0.6, test_share=0.5)
