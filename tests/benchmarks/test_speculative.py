"""The benchmark of speculative decoding: its model trains, its prompts are what they say, its tables and statements come out."""

import json

import jax
import numpy as np
import pytest

from benchmarks import (
  report,
  speculative,
  speculative_costs,
  speculative_frontier,
  speculative_prompts,
  stochastic_depth,
)
import jaxlm
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.models.transformer import Transformer, init_params
from trainers.config import OptimizerConfig

TINY = stochastic_depth.Setting(
  model=stochastic_depth.MODEL.replace(
    num_layers=5, model_dim=16, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16
  ),
  steps=3,
  rows=2,
  length=16,
  optimizer=OptimizerConfig(warmup_steps=1),
)


@pytest.fixture
def lm():
  params = jax.jit(lambda key: init_params(TINY.model, key))(jax.random.key(0))
  return jaxlm.LanguageModel(TINY.model, params, ByteTokenizer())


@pytest.mark.slow
def test_without_dropping_the_loss_is_the_models(lm):
  setting = stochastic_depth.Setting(model=TINY.model, highest_rate=0.0)
  tokens = np.random.default_rng(0).integers(0, 256, (2, 17))
  total, weight = stochastic_depth.loss(setting, lm.params, tokens, jax.random.key(0))
  logits, _ = Transformer(TINY.model).apply({'params': lm.params}, tokens[:, :-1])
  log_p = jax.nn.log_softmax(logits)
  expected = -np.take_along_axis(np.asarray(log_p), tokens[:, 1:, None], axis=2).sum()
  assert weight == 32
  np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_the_first_and_the_last_layer_are_never_left_out(lm):
  setting = stochastic_depth.Setting(model=TINY.model, highest_rate=1.0)
  tokens = np.random.default_rng(0).integers(0, 256, (2, 17))
  loss = lambda params, key: stochastic_depth.loss(setting, params, tokens, key)[0]
  moved = {name: set() for name in ('layer_0', 'layer_2', 'layer_4')}
  gradient = jax.jit(jax.grad(loss))
  for seed in range(6):
    grads = gradient(lm.params, jax.random.key(seed))
    for name, seen in moved.items():
      seen |= {
        bool(np.any(grads[name][part][which]['kernel'])) for part, which in (('attention', 'o'), ('mlp', 'down'))
      }
  assert moved == {'layer_0': {True}, 'layer_2': {True, False}, 'layer_4': {True}}


@pytest.mark.slow
def test_training_learns_and_held_out_documents_are_others():
  _, losses = stochastic_depth.train(TINY)
  assert len(losses) == 3 and np.isfinite(losses).all()
  seen, unseen = (set(stochastic_depth.documents(held_out)) for held_out in (False, True))
  assert seen and unseen and not seen & unseen


def test_prompts_are_the_same_each_time_and_of_five_kinds():
  lm = jaxlm.LanguageModel(TINY.model, None, Chatting())
  prompts = speculative_prompts.prompts(lm, 2)
  assert [kind for kind, _ in prompts] == [*speculative_prompts.KINDS] * 2
  assert prompts == speculative_prompts.prompts(lm, 2)
  assert len({bytes(ids) for _, ids in prompts}) == 10
  with pytest.raises(ValueError, match='each=9'):
    speculative_prompts.prompts(lm, 9)


class Chatting(ByteTokenizer):
  def chat(self, messages, **_):
    return self.encode(f'user: {messages}')


def test_predictions_follow_from_costs_and_counts():
  costs = speculative_costs.Costs(1.0, drafts=(1, 7), draft=(0.3, 0.2), nodes=(1, 5, 9), verify=(1.0, 1.4, 2.2))
  stats = {'rounds': 10, 'drafted': 40, 'accepted': 30, 'verified': 70, 'tokens_per_round': 4.0}
  assert costs.paper_speedup(stats) == pytest.approx(4 / (1 + 4 * 0.25))
  assert costs.speedup(stats) == pytest.approx(4 / (1.8 + 4 * 0.25))


@pytest.mark.slow
def test_the_part_on_the_redundant_model_writes_table_statements_and_plot(lm, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  monkeypatch.setattr(stochastic_depth, 'trained', lambda: lm)
  speculative.main(
    speculative.Config(
      parts=('gain',), ratios=(0.5,), sets=8, prompts=1, prompt_bytes=20, new_bytes=80, max_draft=3, lookup_draft=3,
      repeats=1,
    )
  )  # fmt: skip
  written = json.loads((tmp_path / 'speculative_gain.json').read_text())
  rows = {row['method']: row for row in written['rows']}
  assert list(rows) == ['plain', 'prompt lookup', 'SWIFT 0.5', 'SWIFT 0.5 after lookup', 'SWIFT from scratch']
  assert all(row['same'] == '1/1' for row in rows.values()) and written['flips'] == {}
  assert written['checks'][0]['pass'] and 'PASS' in capsys.readouterr().out
  assert rows['SWIFT 0.5']['predicted'] > 0 and written['searches'][0]['sets'] >= 8
  assert (tmp_path / 'speculative_gain.png').stat().st_size > 10_000


@pytest.mark.slow
def test_the_frontier_has_rows_of_searches_and_of_sets_chosen_one_by_one(lm, capsys):
  prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
  rows = speculative_frontier.rows(lm, prompts, [[9]], skipped=(1, 2), sets=100, searches=2)
  assert [(row['skipped of 6'], row['found by']) for row in rows] == [
    *((n, by) for n in (1, 2) for by in ('search 1', 'search 2', 'one by one')), (4, 'every second layer'),
  ]  # fmt: skip
  assert [row['sets'] for row in rows if row['found by'] == 'one by one'] == [6, 6 + 5]
  assert all(8 <= row['sets'] <= 108 for row in rows if row['found by'].startswith('search'))
  assert all(0 <= row[where] <= 1 for row in rows for where in ('seen', 'held out'))
  # Of six single sub-layers both ways try all; which of two good ones is better, few tokens do not tell.
  *found, best = (row['seen'] for row in rows if row['skipped of 6'] == 1)
  assert min(found) >= best - 0.1 > 0.5


@pytest.mark.slow
def test_searches_can_read_as_many_tokens_as_choosing_one_by_one(lm):
  rows = speculative_frontier.rows(lm, [[1, 2, 3], [4, 5, 6, 7, 8]], [[9]], skipped=(2,), sets=None, searches=1)
  tokens = {row['found by']: row['tokens'] for row in rows}
  assert tokens['one by one'] == (6 + 5) * 2 * 95
  assert tokens['one by one'] <= tokens['search 1'] <= tokens['one by one'] + 9 * 32
