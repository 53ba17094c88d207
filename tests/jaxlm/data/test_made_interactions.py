"""The generated data has the statistics that were measured on the published sets and on the prototype of the specification."""

import numpy as np
import pytest

from jaxlm.data import interactions, made_interactions, semantic_ids
from jaxlm.data.interactions import TRAIN
from jaxlm.data.made_interactions import SIZES
from jaxlm.evaluation import ranking


@pytest.fixture(scope='module')
def small():
  return made_interactions.generate(SIZES['small'])


def test_the_sizes_of_histories_and_the_popularity_of_items(small):
  lengths = np.bincount(small.log.users)
  assert len(lengths) == 2000 and len(small.items) == 1000
  assert np.mean(lengths) == pytest.approx(8.0, abs=0.3) and np.median(lengths) == 7
  assert lengths.min() >= 4 and lengths.max() <= 50
  assert len(interactions.unique(small.log)) == len(small.log)  # No repeats.
  counts = np.sort(np.bincount(small.log.items, minlength=1000))[::-1]
  shares = [counts[: int(1000 * part)].sum() / counts.sum() for part in (0.01, 0.1, 0.2)]
  np.testing.assert_allclose(shares, [0.148, 0.502, 0.655], atol=0.02)


def test_the_first_code_of_an_item_says_much_about_the_next_item(small):
  codes, _ = semantic_ids.residual_kmeans(small.items.vectors)
  report = semantic_ids.report(semantic_ids.unique(codes))
  assert report.nodes[0] == 32 and report.nodes[3] == 1000 and report.fan_out[3] <= 8
  np.testing.assert_allclose(report.nodes[1:3], [419, 855], rtol=0.05)
  histories = interactions.split(small.log)
  steps = [codes[histories.of(u, 0, 1, 2), 0] for u in range(len(histories))]
  same = np.mean(np.concatenate([step[1:] == step[:-1] for step in steps]))
  share = np.bincount(np.concatenate(steps)) / sum(map(len, steps))
  assert same == pytest.approx(0.36, abs=0.04) and 6 < same / (share**2).sum() < 11


def test_the_last_item_says_much_more_than_the_popularity(small):
  histories = interactions.split(small.log, 'leave-one-out')
  known, truth = histories.examples(interactions.TEST)
  learned = [histories.of(u, TRAIN) for u in range(len(histories))]
  hit = lambda lists: ranking.ranking_metrics(lists, truth, ks=(10,))['recall@10']
  assert hit(ranking.popular(histories.popularity, len(known), 10)) == pytest.approx(0.152, abs=0.03)
  assert hit(ranking.bigram(learned, histories.popularity, known, 10)) == pytest.approx(0.444, abs=0.05)


def test_the_data_is_a_function_of_the_seed():
  one, same, other = (made_interactions.generate(SIZES['tiny'], seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one.log.items, same.log.items)
  np.testing.assert_array_equal(one.items.vectors, same.items.vectors)
  assert len(one.log) != len(other.log) or (one.log.items != other.log.items).any()
  assert len(set(one.items.titles)) == 200
