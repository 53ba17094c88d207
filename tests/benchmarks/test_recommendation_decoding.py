"""All ways to search find the same items of a tiny model, and the table is whole."""

import json

import pytest

from benchmarks import recommendation_decoding, report

pytest.importorskip('torch', reason='the peer is not installed: pip install jaxlm[bench]')
pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[bench]')


@pytest.mark.slow
@pytest.mark.parametrize('batch', [1, 2])
def test_all_ways_find_the_same_items(monkeypatch, tmp_path, batch):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  config = recommendation_decoding.Config(
    targets=('2x128',), items=60, codes=5, history_items=2, queries=2, batch=batch, ks=(3,), multiples=(1,), repeats=1, threads=1,
  )  # fmt: skip
  recommendation_decoding.main(config)
  found = json.loads((tmp_path / 'recommendation_decoding.json').read_text())
  assert [row['way'] for row in found['rows']] == ['plain', 'N=3', 'copies of the history', 'transformers']
  assert all(row['same items'] == 1 for row in found['rows'])
  assert found['rows'][0]['plain / this'] == 1 and found['rows'][0]['target calls'] == 4
  assert found['rows'][1]['target calls'] < 4
  assert found['checks'][-1] == {'statement': 'all ways find the same items', 'pass': True, 'measured': 1}
