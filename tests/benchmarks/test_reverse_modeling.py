"""The benchmark of reverse modeling: its pages never serve twice, its tables are whole, its intervals are bootstraps."""

import functools
import json

import numpy as np
import pytest

from benchmarks import direction_models, direction_texts, report, reverse_modeling
from jaxlm.analysis.direction.records import Score
from jaxlm.analysis.direction.rows import Sums
from jaxlm.data import fetch

TINY = direction_models.Setting(
  model=direction_models.MODEL.replace(
    num_layers=1, model_dim=16, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16, max_length=64
  ),
  rows=2,
  length=32,
)


def test_pages_are_whole_paragraphs_of_the_size_asked_for():
  text = '\n\n'.join(['a' * 300] * 20)
  pages = list(direction_texts.pages(text))
  assert all(direction_texts.SHORT <= len(page) <= direction_texts.LONG for page in pages)
  assert sum(page.count('a') for page in pages) == 6000


@pytest.mark.slow
def test_domains_are_distinct_pages_in_an_order_of_their_own(monkeypatch):
  monkeypatch.setattr(fetch, 'locate', lambda name: None)
  domains = direction_texts.domains({}, 50_000)
  assert list(domains) == ['docs', 'code'] and domains == direction_texts.domains({}, 50_000)
  for pages in domains.values():
    assert len(set(pages)) == len(pages) and 45_000 < sum(map(len, pages)) < 55_000


def scores(nll):
  return [Score(i, '', '', 0, 10, Sums(10, x, x, 1.0)) for i, x in enumerate(nll)]


def test_intervals_hold_the_difference_and_are_zero_for_equals():
  rng = np.random.default_rng(0)
  b = rng.uniform(10, 30, 200)
  a = b + rng.normal(1.0, 2.0, 200)
  found = reverse_modeling.compared(scores(a), scores(b), 0)
  assert found.value == pytest.approx(np.mean(a - b) / 10) and found.low < found.value < found.high
  assert 0.03 < found.high - found.low < 0.08
  same = reverse_modeling.compared(scores(b), scores(b), 0)
  assert same.low == same.high == 0.0


@pytest.mark.slow
def test_the_studies_write_their_tables(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  monkeypatch.setattr(direction_models, 'Setting', functools.partial(lambda: TINY))
  monkeypatch.setattr(fetch, 'locate', lambda name: None)
  reverse_modeling.main(
    reverse_modeling.Config(
      parts=('gap', 'cases', 'selection'), characters=60_000, vocab_size=400, steps=3, seeds=1, more_steps=2
    )
  )
  written = json.loads((tmp_path / 'reverse_modeling.json').read_text())
  assert [row['arm'] for row in written['rows']] == ['none', *reverse_modeling.ARMS]
  by_arm = {row['arm']: row for row in written['rows']}
  assert by_arm['high S']['mean S'] > by_arm['random']['mean S'] > by_arm['low S']['mean S']
  assert by_arm['random']['less random'] == 0
  assert {(row['trained'], row['domain']) for row in written['gap']} == {
    (trained, domain) for trained in ('forward', 'both') for domain in ('all', 'docs', 'code')
  }
  assert set(written['planted']) == {'shuffled words', 'shuffled lines', 'boilerplate'}
  assert len(written['checks']) == 3


def test_an_unreadable_corpus_is_named():
  with pytest.raises(ValueError, match='NAME=SPEC'):
    reverse_modeling.main(reverse_modeling.Config(corpora=('nameless',)))
