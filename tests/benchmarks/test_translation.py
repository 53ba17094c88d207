"""The benchmark of translation: three libraries find the same translations of a tiny model, and its table is whole."""

import json

import pytest

from benchmarks import report, translation, translation_decode

pytest.importorskip('torch', reason='the peer is not installed: pip install jaxlm[bench]')
pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[bench]')
pytest.importorskip('ctranslate2', reason='the peer is not installed: pip install jaxlm[bench]')

TINY = (
  '--study decode --layers 1 --model-dim 16 --heads 2 --mlp-dim 24 --vocabulary 50 --batches 1 3 --beams 1 2 --sources 3 '
  '--shortest 2 --longest 6 --max-new-tokens 16 --repeats 1 --threads 1 --seed 7'
)


def test_libraries_agree_on_a_tiny_model(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  translation.main(TINY.split())
  found = json.loads((tmp_path / 'translation_decode.json').read_text())
  rows, libraries = found['rows'], ('jaxlm', 'transformers', 'ctranslate2')
  cases = [(batch, beam, name) for batch in (1, 3) for beam in (1, 2) for name in libraries]
  assert [(row['batch'], row['beam'], row['library']) for row in rows] == cases
  assert all(row['same translations'] == 1 and row['largest gap of others'] == 0 for row in rows)
  assert all(row['seconds / jaxlm'] == 1 for row in rows if row['library'] == 'jaxlm')
  assert all(3 < row['tokens'] < 3 * 16 for row in rows)  # Translations end before they must.
  assert found['config']['vocabulary'] == 50 and 'seconds / jaxlm' in capsys.readouterr().out


def test_the_gap_is_that_of_the_first_tokens_that_differ():
  import torch

  config = translation_decode.Config(layers=1, model_dim=16, heads=2, mlp_dim=24, vocabulary=50)
  model = translation_decode.random_marian(config)
  start = model.config.decoder_start_token_id
  with torch.inference_mode():
    logits = model(input_ids=torch.tensor([[4, 5, 0]]), decoder_input_ids=torch.tensor([[start, 7, 8]])).logits[0]
  gap = lambda ours, theirs: translation_decode.gap(model, [[4, 5]], 0, ours, theirs)
  assert gap([7, 8, 9, 3], [7, 8, 11]) == pytest.approx(float((logits[2, 9] - logits[2, 11]).abs()), rel=1e-4)
  assert gap([7], [7, 8]) == pytest.approx(float((logits[1, 0] - logits[1, 8]).abs()), rel=1e-4)


def test_a_study_that_does_not_exist_is_refused(capsys):
  with pytest.raises(SystemExit):
    translation.main(['--study', 'none'])
  assert 'decode' in capsys.readouterr().err
