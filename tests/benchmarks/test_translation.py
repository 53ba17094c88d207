"""The benchmark of translation: three libraries find the same translations of a tiny model, and its table is whole."""

import json

import pytest

from benchmarks import report, translation

pytest.importorskip('torch', reason='the peer is not installed: pip install jaxlm[bench]')
pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[bench]')
pytest.importorskip('ctranslate2', reason='the peer is not installed: pip install jaxlm[bench]')

TINY = (
  '--study decode --layers 1 --model-dim 16 --heads 2 --mlp-dim 24 --vocabulary 50 --batches 1 3 --beams 1 2 --sources 3 '
  '--shortest 2 --longest 6 --max-new-tokens 16 --repeats 1 --threads 1 --seed 4'
)


def test_libraries_agree_on_a_tiny_model(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  translation.main(TINY.split())
  found = json.loads((tmp_path / 'translation_decode.json').read_text())
  rows, libraries = found['rows'], ('jaxlm', 'transformers', 'ctranslate2')
  cases = [(batch, beam, name) for batch in (1, 3) for beam in (1, 2) for name in libraries]
  assert [(row['batch'], row['beam'], row['library']) for row in rows] == cases
  assert all(row['same translations'] == 1 and row['largest score gap of others'] == 0 for row in rows)
  assert all(row['seconds / jaxlm'] == 1 for row in rows if row['library'] == 'jaxlm')
  assert all(3 < row['tokens'] < 3 * 16 for row in rows)  # Translations end before they must.
  assert found['config']['vocabulary'] == 50 and 'seconds / jaxlm' in capsys.readouterr().out


def test_a_study_that_does_not_exist_is_refused(capsys):
  with pytest.raises(SystemExit):
    translation.main(['--study', 'none'])
  assert 'decode' in capsys.readouterr().err
