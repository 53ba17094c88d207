"""The study of classification: sampling, rows and statements say what they should, and every part runs on little."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import classification, classification_models, classification_speed, classification_texts, report
from benchmarks.classification_texts import TextSet
from jaxlm.data import labelled


@pytest.fixture
def results(tmp_path, monkeypatch):
  """An empty folder for results, and an empty cache folder."""
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
  return tmp_path / 'results'


@pytest.fixture
def parts(monkeypatch):
  """Texts in place of the fetched ones; the test texts have a label that no other has."""
  several = lambda i: ('even', 'third') if i % 6 == 0 else ('even',) if i % 2 == 0 else ('odd',)

  def made(name, first, n, more=()):
    tags = name == 'debtags'
    rows = [labelled.Row(f'{" ".join(several(i))} {i} text', (several(i) if tags else several(i)[:1],), '') for i in range(first, first + n)]  # fmt: skip
    rows += [labelled.Row('', (('even',),), ''), *more]
    return labelled.LabelledTexts(name, ('label',), (tags,), lambda: iter(rows))

  unknown = [labelled.Row('new', (('new',),), '')]
  given = lambda name: labelled.Parts(made(name, 0, 60), made(name, 60, 20), made(name, 80, 20, unknown))
  real = labelled.open_parts  # The trainer reads the files that the study writes.
  monkeypatch.setattr(labelled, 'open_parts', lambda name, **how: real(name, **how) if how else given(name))


def test_sets_are_sampled_by_digest_and_have_the_labels_of_their_training_texts(results, parts):
  whole = classification_texts.open_set('r8', 10, 5)
  assert [len(whole.texts[part]) for part in ('train', 'valid', 'test')] == [60, 20, 20]
  assert whole.names == ['even', 'odd'] and whole.texts['train'][:2] == ['even third 0 text', 'odd 1 text']
  np.testing.assert_array_equal(whole.truth('test'), np.arange(20) % 2)
  sampled = classification_texts.open_set('debtags', 30, 5)
  # The text with the unknown label is one of five that were taken.
  assert [len(sampled.texts[part]) for part in ('train', 'valid', 'test')] == [30, 5, 4] and sampled.multilabel
  numbers = [int(text.split()[-2]) for text in sampled.texts['train']]
  assert numbers == sorted(numbers) and numbers != list(range(30))
  expected = [[i % 2 == 0, i % 2 == 1, i % 6 == 0] for i in numbers]
  np.testing.assert_array_equal(sampled.truth('train'), expected)
  more = classification_texts.open_set('debtags', 40, 5)
  assert set(sampled.texts['train']) < set(more.texts['train']) and sampled.facts != more.facts


def test_rows_and_statements_have_errors(capsys):
  texts = TextSet('r8', {}, {'test': ['x'] * 400}, {}, ['a', 'b'], False)
  run = lambda score, size=7: {
    'metrics': {'accuracy': score, 'ece': 0.1}, 'training': (30.0, 20.0), 'predicting': (2.0, 4.0), 'predicted': 100, 'parameters': size
  }  # fmt: skip
  row = lambda system, *scores: classification_models.summary(texts, system, list(map(run, scores)))
  rows = [row('EXAM', 0.9, 0.92, 0.94), row('encoder alone', 0.95, 0.93, 0.91), row('TF-IDF, linear', 0.925)]
  assert (rows[0]['score %'], rows[0]['deviation'], rows[0]['error'], rows[0]['texts per CPU second']) == (
    92,
    2,
    1.15,
    25,
  )
  assert rows[2]['deviation'] == '' and rows[2]['error'] == pytest.approx(100 * np.sqrt(0.925 * 0.075 / 400), abs=0.01)
  found = classification.checks(rows)
  assert [(v['pass'], v['measured']) for v in found] == [(False, -1.0), (True, -0.5)]
  assert found[0]['error'] == pytest.approx(np.hypot(1.15, 1.15), abs=0.01) and 'MISS' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.study
def test_every_part_runs_on_little_and_nothing_is_trained_twice(results, parts, monkeypatch, capsys):
  pytest.importorskip('sklearn', reason='the peer is not installed: pip install jaxlm[bench]')
  some = dict(
    parts=('sets',), sets=('r8', 'debtags'), systems=('EXAM', 'TF-IDF, linear'), texts=40, tests=10, seeds=2, tiny=True
  )
  classification.main(classification.Config(**some))
  written = json.loads((results / 'classification.json').read_text())
  assert [row['seeds'] for row in written['rows']] == [2, 1, 1, 1] and (results / 'classification.png').is_file()
  assert written['rows'][0]['parameters'] > 1000 and len(written['checks']) == 2
  monkeypatch.setattr(classification_models, '_trained', None)
  monkeypatch.setattr(classification_models, 'linear', None)
  classification.main(classification.Config(**some))
  assert json.loads((results / 'classification.json').read_text()) == written
  with pytest.raises(SystemExit, match='Unknown systems GRUE; there are EXAM'):
    classification.main(classification.Config(parts=('sets',), systems=('GRUE',)))


@pytest.mark.slow
def test_both_sides_train_the_same_model(results):
  pytest.importorskip('torch', reason='the peer is not installed: pip install jaxlm[parity]')
  classification.main(classification.Config(parts=('speed',), repeats=2, tiny=True))
  (written,) = [json.loads(path.read_text()) for path in Path(results).glob('*.json')]
  assert [row['shape'] for row in written['rows']] == list(classification_speed.SHAPES)
  assert max(row['largest loss difference'] for row in written['rows']) < 1e-4
