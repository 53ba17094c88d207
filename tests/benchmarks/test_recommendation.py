"""The study of recommendation runs through on tiny models, goes on with what is there, and says which aims hold."""

import dataclasses
import importlib.util
import json

import pytest

from benchmarks import recommendation, recommendation_runs, report
from benchmarks.recommendation import Config

TINY = Config(losses=('sft', 'atspeed-s'), ks=(1, 3), beam=6, users=8, batch_size=8, tiny=True)


@pytest.mark.slow
def test_a_tiny_study(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  recommendation.main(TINY)
  found = json.loads((tmp_path / 'recommendation.json').read_text())
  tables = {}
  for row in found['rows']:
    tables.setdefault(row['table'], []).append(row)
  assert [row['system'] for row in tables['made-small: recommending']] == ['popularity', 'bigram', 'SASRec', 'target']
  drafts = tables['made-small: drafts']
  assert {(row['loss'], row['rule'], row['K']) for row in drafts} == {
    (loss, rule, k) for loss in TINY.losses for rule in ('strict', 'relaxed') for k in (1, 3)
  }
  for row in drafts:
    assert row['accepted steps'] + row['target calls'] == pytest.approx(3)  # Identifiers of three tokens.
    assert row['rule'] == 'relaxed' or row['same lists %'] == 100
  assert len(found['checks']) == 5
  monkeypatch.setattr(recommendation_runs.recommend, 'main', lambda config: None)  # All that is trained is there.
  capsys.readouterr()
  peer = all(map(importlib.util.find_spec, ('torch', 'transformers')))
  recommendation.main(dataclasses.replace(TINY, losses=(), peer=peer))
  assert 'Written to' in capsys.readouterr().out
  rows = json.loads((tmp_path / 'recommendation_plain.json').read_text())['rows']
  beside = [row for row in rows if row['table'] == 'made-small: plain search']
  assert [row['K'] for row in beside] == ([1, 3] if peer else [])
  assert all(row['same items %'] > 90 and row['transformers / jaxlm'] > 0 for row in beside)


def test_the_means_are_over_seeds_and_settings_are_checked():
  from benchmarks.recommendation_scores import means

  row = {'table': 't: drafts', 'loss': 'sft', 'rule': 'strict', 'K': 1, 'target calls': 2.0}
  found = means([row | {'seed': 0}, row | {'seed': 1, 'target calls': 3.0}])
  assert len(found) == 1 and found[0]['target calls'] == 2.5 and found[0]['seeds'] == 2
  assert found[0]['deviation of calls'] == pytest.approx(0.5**0.5)
  assert (
    means([row | {'seed': 0, 'one by one': 3.0}, row | {'seed': 1}])[0]['one by one'] == 3
  )  # Only the first seed is timed.
  with pytest.raises(ValueError, match=r'ks=\(50,\) must be within 1 .. beam=40'):
    Config(ks=(50,))
