"""The attention-sink study: its task and text obey their rules, its statements come out, its command runs to the end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import attention_sink as study
from benchmarks import gated_retrieval as task
from benchmarks import report
from benchmarks.procedural_text import ProceduralBatches, procedural_text


@pytest.mark.parametrize('first_token', ['fixed', 'random'])
def test_batch_obeys_the_rules(first_token):
  tokens, targets = task.retrieval_batch(jax.random.key(3), 200, length=48, first_token=first_token)
  tokens, targets, answers = np.asarray(tokens), np.asarray(targets), np.asarray(task.answers())
  assert tokens.shape == (200, 48) and targets.shape == (200, 48, task.ANSWER_DIM)
  trigger = tokens >= task.FIRST_TRIGGER
  assert not trigger[:, :2].any() and not (trigger[:, 1:] & trigger[:, :-1]).any()
  assert abs(trigger[:, 2:].mean() - 0.15 / 1.15) < 0.01
  assert set(tokens[trigger]) == set(range(task.FIRST_TRIGGER, task.VOCAB))
  if first_token == 'fixed':
    assert (tokens[:, 0] == task.FIXED).all() and (tokens[:, 1:] != task.FIXED).all()
  else:
    assert set(tokens[:, 0]) == set(range(1, task.FIRST_TRIGGER))
  for b, t in np.ndindex(*tokens.shape):
    expected = answers[tokens[b, t - 1]] if trigger[b, t] else 0.0
    np.testing.assert_array_equal(targets[b, t], np.broadcast_to(expected, task.ANSWER_DIM))


def test_training_never_sees_the_held_out_rows_and_repeats_itself():
  twice = [task.train(task.MODEL, 'fixed', 3, 2) for _ in range(2)]
  np.testing.assert_array_equal(twice[0][1], twice[1][1])
  assert (twice[0][1][0] != twice[0][1][1]).all()
  assert jnp.isfinite(twice[0][1]).all()


def test_procedural_text_repeats_spans_and_never_draws_the_fixed_token():
  text = procedural_text(np.random.default_rng(0), 50, 256, 512)
  assert text.shape == (50, 256) and text.min() >= 1 and text.max() < 512
  words = lambda row: {tuple(row[i : i + 8]) for i in range(len(row) - 8)}
  repeated = np.mean([len(words(row)) < len(row) - 8 for row in text])
  assert repeated > 0.9
  shuffled = np.random.default_rng(1).permuted(text, axis=1)
  assert np.mean([len(words(row)) < len(row) - 8 for row in shuffled]) < 0.1


def test_procedural_batches_are_a_function_of_seed_and_step():
  make = lambda seed: ProceduralBatches(vocab=128, batch_size=3, length=40, seed=(seed, 0), at_once=2)
  ahead, again = make(0), make(0)
  later = ahead.batch(5)
  np.testing.assert_array_equal(again.batch(1)['tokens'], make(0).batch(1)['tokens'])
  np.testing.assert_array_equal(later['tokens'], again.batch(5)['tokens'])
  assert (later['tokens'] != make(1).batch(5)['tokens']).any() and (later['tokens'][:, 0] == 0).all()
  np.testing.assert_array_equal(later['tokens'][:, 1:], later['targets'][:, :-1])


def rows_of(study_name, **values):
  keys = ('loss', 'Sink_1', 'Sink_*', 'peak |h_1| ratio')
  return [{'study': study_name, 'row': name.replace('_', ' '), **dict(zip(keys, v))} for name, v in values.items()]


def test_a_statement_holds_in_every_seed_or_is_a_miss():
  good = rows_of('retrieval', softmax=(1e-4, 1.0, None, 1.0), sigmoid=(1e-4, 0.0, None, 1.0))
  assert [v['pass'] for v in study.checks(good, 'cpu')] == [True, True]
  bad_seed = rows_of('retrieval', softmax=(1e-4, 0.5, None, 1.0))
  assert [v['pass'] for v in study.checks(good + bad_seed, 'cpu')] == [False, True]
  unsolved = rows_of('retrieval', sigmoid=(1e-2, 0.0, None, 1.0))
  assert [v['pass'] for v in study.checks(good + unsolved, 'cpu')] == [True, False]


def test_the_large_model_is_judged_by_four_statements():
  rows = rows_of('lm', softmax=(4.0, 0.7, None, 5.0), sigmoid=(4.04, 0.1, None, 1.5))
  assert [v['pass'] for v in study.checks(rows, 'h200')] == [True] * 4
  rows = rows_of('lm', softmax=(4.0, 0.15, None, 2.0), sigmoid=(4.1, 0.1, None, 3.0))
  assert [v['pass'] for v in study.checks(rows, 'h200')] == [False] * 4
  assert study.checks(rows, 'cpu') == []


@pytest.mark.slow
def test_the_command_writes_rows_verdicts_and_a_figure(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  only = ('softmax', 'k bias')
  study.main(study.Config(setting='h200', seeds=1, steps=2, lm_steps=3, only=only, tiny=True))
  written = json.loads((tmp_path / 'attention_sink.h200.json').read_text())
  assert [(r['study'], r['row']) for r in written['rows']] == [(s, r) for s in ('retrieval', 'lm') for r in only]
  assert [c['step'] for c in written['curves']] == [[2, 3], [2, 3]]
  assert (tmp_path / 'attention_sink.h200.png').stat().st_size > 10_000
  said = [line for line in capsys.readouterr().out.splitlines() if line[:4] in ('PASS', 'MISS')]
  assert len(said) == len(written['checks']) == 2  # One statement of each study needs softmax alone.


@pytest.mark.slow
def test_the_byte_model_learns_from_the_text_that_ships_with_python():
  setting = study.tiny(study.SETTINGS['cpu'])
  text = study.embedded(setting, seed=0)
  assert text[2].shape == (study.PROBE_ROWS, study.PROBE_LENGTH)
  result, curve = study.lm_run(study.LM_ROWS[0], setting, text, 60, seed=0)
  assert result['loss'] == curve['loss'][-1] < curve['loss'][0] - 0.5


@pytest.mark.slow
@pytest.mark.study
def test_softmax_grows_a_sink_where_sigmoid_does_not():
  rows = [row for row in study.RETRIEVAL_ROWS if row.name in ('softmax', 'sigmoid')]
  results = [r for row in rows for r in study.retrieval_runs(row, steps=400, seeds=3)]
  verdicts = study.checks(results, 'cpu')
  assert len(verdicts) == 2 and all(v['pass'] for v in verdicts), verdicts
