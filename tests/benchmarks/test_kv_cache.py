"""The recall part of the benchmark of caches: its texts obey their rules, its table is whole, its statements come out."""

import json

import jax
import numpy as np
import pytest

from benchmarks import kv_cache, kv_cache_recall, recall, report
from trainers.config import OptimizerConfig

TINY = recall.Setting(
  model=recall.MODEL.replace(model_dim=16, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16),
  phases=(recall.Phase(2, 4, 67, 3, 2, far=0.3, asked=0.8),),
  optimizer=OptimizerConfig(warmup_steps=1),
)
METHODS = [
  'full', 'lazy', 'random lazy', 'first lazy', 'last lazy', 'streaming', 'snapkv', 'h2o', 'all lazy', 'full, 4 bits',
  'lazy, 4 bits', 'threshold', 'random, as threshold', 'threshold, 4 bits',
]  # fmt: skip
FEW = ['full', 'lazy', 'first lazy', 'all lazy', 'threshold', 'random, as threshold', 'threshold, 4 bits']


def pairs_in(tokens) -> dict[int, tuple[int, list[int]]]:
  """Returns (where, values) of each key's first occurrence, read from left to right."""
  found = {}
  for t, symbol in enumerate(tokens.tolist()):
    if recall.FIRST_KEY <= symbol < recall.FIRST_VALUE and symbol not in found:
      found[symbol] = t, tokens[t + 1 : t + 1 + recall.ANSWER].tolist()
  return found


def test_answers_are_the_values_of_the_asked_key_which_lazy_layers_forget():
  prompts, answers = recall.prompts(0, 300)
  assert prompts.shape == (300, 256) and answers.shape == (300, recall.ANSWER)
  places = []
  for prompt, answer in zip(prompts, answers):
    pairs = pairs_in(prompt[:-1])
    where, values = pairs[prompt[-1]]
    assert values == answer.tolist() and len(pairs) == 8 and prompt[0] == recall.FIXED
    assert min(w for w, _ in pairs.values()) >= recall.WINDOW.n_initial
    assert max(w for w, _ in pairs.values()) + recall.ANSWER < 256 - recall.WINDOW.n_recent
    values_of_all = sum((v for _, v in pairs.values()), [])
    assert len(set(values_of_all)) == 24 and min(values_of_all) >= recall.FIRST_VALUE
    places.append(where)
  assert min(places) < 30 and max(places) > 190


def test_training_weighs_the_answers_and_a_little_the_filler():
  tokens, weights = map(np.asarray, recall.texts(jax.random.key(5), 50, 131, 5, 6, 0.8))
  for row, weight in zip(tokens, weights):
    pairs, asked = pairs_in(row), np.flatnonzero(weight == 1.0)
    starts = asked.reshape(-1, recall.ANSWER)[:, 0] - 1
    assert starts[-1] == 131 - 1 - recall.ANSWER and 1 <= len(starts) <= 6
    for start in starts:
      assert pairs[row[start]][1] == row[start + 1 : start + 1 + recall.ANSWER].tolist()
      assert pairs[row[start]][0] < start
    filler = row >= recall.FIRST_FILLER
    np.testing.assert_array_equal(weight[filler], np.float32(0.1))
    assert not weight[~filler][weight[~filler] != 1.0].any()


def test_filler_follows_its_rule():
  text = np.asarray(recall.filler(*jax.random.split(jax.random.key(0)), 40, 200))[:, 3:] - recall.FIRST_FILLER
  follows = recall.RULE[text[:, :-2], text[:, 1:-1]] == text[:, 2:]
  assert abs(follows.mean() - (0.9 + 0.1 / recall.FILLER)) < 0.01


@pytest.mark.slow
def test_the_part_writes_its_table_and_trains_once(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path))
  lm = recall.trained(TINY)
  monkeypatch.setattr(recall, 'train', None)
  again = recall.trained(TINY)
  assert again.config == lm.config == TINY.model
  jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
  every = kv_cache_recall.methods(lm)
  assert [m.name for m in every] == METHODS
  monkeypatch.setattr(recall, 'trained', lambda: lm)
  # Without those that are programs of their own: each takes seconds to compile.
  monkeypatch.setattr(kv_cache_recall, 'methods', lambda _: [m for m in every if m.name in FEW])
  kv_cache.main(kv_cache.Config(parts=('recall',), recall_prompts=2))
  kept = json.loads((report.RESULTS / 'kv_cache_recall.json').read_text())
  rows = {row['cache']: row for row in kept['rows']}
  assert list(rows) == FEW
  assert rows['full']['times smaller'] == 1 and rows['full']['relative loss'] <= 1
  assert rows['full']['kB'] == 4 * 256 * 2 * 16 * 2 / 1e3
  assert rows['all lazy']['kB'] == 4 * 32 * 2 * 16 * 2 / 1e3
  assert rows['lazy']['kB'] == rows['first lazy']['kB'] == (256 + 3 * 32) * 2 * 16 * 2 / 1e3
  assert sum(kept['recall lazy sets'].values()) == 2
  said = [line[:4] for line in capsys.readouterr().out.splitlines() if line[:4] in ('PASS', 'MISS')]
  assert said == ['PASS' if v['pass'] else 'MISS' for v in kept['recall checks']] and len(said) == 5


@pytest.mark.slow
@pytest.mark.study
def test_layers_that_are_lazy_on_a_prompt_may_forget_it_and_others_may_not(monkeypatch, tmp_path):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path))  # Whatever was trained before, here it is trained anew.
  lm = recall.trained()
  assert abs(kv_cache_recall.calibrated(lm) - kv_cache_recall.THRESHOLD) < 0.1
  verdicts = kv_cache_recall.checks(kv_cache_recall.scores(lm, 250)[0])
  assert all(v['pass'] for v in verdicts), verdicts
