"""The best evaluation is found by any metric, up or down, and found again by a run that goes on."""

import dataclasses
import json
import types

import chex
import jax
import pytest

from jaxlm.io import checkpoint
from tests.trainers import tiny
from tests.trainers.test_loop import interrupt_at, logged
from trainers import loop
from trainers.best import Best, first
from trainers.config import ConfigError, RunConfig


def test_up_and_down_and_what_is_not_finite():
  best = Best('loss', 'min')
  for step, (value, at, waited) in enumerate(
    [(float('nan'), 0, 1), (3.0, 1, 0), (3.0, 1, 1), (2.0, 3, 0), (2.5, 3, 1)]
  ):
    best = best.after(step, {'loss': value, 'other': 0.0})
    assert (best.step, best.waited) == (at, waited)
  assert Best('bleu', 'max', value=3.0).after(5, {'bleu': 4.0}).step == 5
  with pytest.raises(ConfigError, match="run.best_metric 'los'. Did you mean 'loss'"):
    Best('los', 'min').after(1, {'loss': 1.0})


def test_a_trainer_knows_which_of_its_metrics_rise():
  task = types.SimpleNamespace(best_metric='bleu', higher_is_better=('bleu', 'chrf'))
  mode = lambda **settings: first(RunConfig(**settings), task)
  assert mode() == Best('bleu', 'max')
  assert mode(best_metric='chrf').mode == 'max' and mode(best_metric='loss').mode == 'min'
  assert mode(best_metric='chrf', best_mode='min') == Best('chrf', 'min')


def test_notes_are_believed_and_the_log_tells_where_there_are_none():
  rows = [{'step': s, 'valid/loss': x} for s, x in ((2, 5.0), (4, 3.0), (6, 4.0))] + [{'step': 8, 'loss': 1.0}]
  assert Best('loss', 'min').noted({}, rows) == Best('loss', 'min', 3.0, 4, 1)
  # The log writes a number that is not finite as null; that evaluation counts as one without a gain.
  assert Best('loss', 'min').noted({}, [*rows, {'step': 10, 'valid/loss': None}]) == Best('loss', 'min', 3.0, 4, 2)
  noted = Best('loss', 'min', 2.0, 2, 2)
  assert Best('loss', 'min').noted(dataclasses.asdict(noted), rows) == noted
  assert Best('loss', 'max').noted(dataclasses.asdict(noted), rows) == Best('loss', 'max', 5.0, 2, 2)


# The skill that is measured at each evaluated step: step 4 is the best for good, while the loss falls at every step.
SKILL = {2: 0.2, 4: 0.9, 6: 0.3, 8: 0.4, 10: 0.5, 12: 0.6}


def fit(directory, **run):
  """Trains 12 steps of a task that measures a skill on the host."""
  config = tiny.config(directory, **dict(steps=12, eval_every=2, save_every=2, keep=1) | run)

  class Skilled(type(tiny.make_task(config))):
    higher_is_better = host_metrics = ('skill',)
    calls = 0

    def evaluate_on_host(self, params, frozen, stop, say):
      assert all(len(x.devices()) == 1 for x in jax.tree.leaves(params))  # A decoder may take them as they are.
      return {'skill': SKILL[run_step[0]]}

  run_step, evaluate = [0], loop._Run.evaluate

  def noting(self, state, signals):
    run_step[0] = self.step
    return evaluate(self, state, signals)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop._Run, 'evaluate', noting)
    return loop.fit(Skilled(), config)


def kept(directory):
  return checkpoint.steps(directory / 'checkpoints')


def test_the_best_by_a_metric_of_the_host_is_kept_and_patience_ends_the_run(tmp_path, monkeypatch, capsys):
  whole = fit(tmp_path / 'whole', best_metric='skill', patience=3)
  assert int(whole.step) == 10 and kept(tmp_path / 'whole') == [4, 10]
  assert 'the best skill, 0.9, is that of step 4, and 3 evaluations' in capsys.readouterr().out
  interrupt_at(monkeypatch, 7)
  with pytest.raises(SystemExit):
    fit(tmp_path / 'parts', best_metric='skill', patience=3)
  monkeypatch.undo()
  parts = fit(tmp_path / 'parts', best_metric='skill', patience=3)
  chex.assert_trees_all_equal(jax.device_get(parts), jax.device_get(whole))
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole') and kept(tmp_path / 'parts') == [4, 10]
  # The same command finds the run ended; a larger patience goes on, and another metric is looked up in the log.
  assert int(fit(tmp_path / 'parts', best_metric='skill', patience=3).step) == 10
  assert int(fit(tmp_path / 'parts', patience=9).step) == 12
  notes = checkpoint.read_notes(tmp_path / 'parts' / 'checkpoints' / '12')['best']
  assert (notes['metric'], notes['step'], notes['waited']) == ('loss', 12, 0)


@pytest.mark.slow
def test_an_evaluation_that_was_made_after_its_checkpoint_is_not_forgotten(tmp_path, monkeypatch):
  """A signal breaks off an evaluation, the resumed run makes it, and is stopped before it saves again."""
  fit(tmp_path / 'whole', best_metric='skill', patience=3)
  calls = []

  def broken(self, count):
    calls.append(count)
    if len(calls) < 3:  # Two for the batches of step 2; the evaluation of step 4, which is the best, is broken off.
      return False
    self.received = 15
    return True

  with monkeypatch.context() as patch:
    patch.setattr(loop.StopOnSignal, 'stop_evaluation', broken)
    with pytest.raises(SystemExit):
      fit(tmp_path / 'parts', best_metric='skill', patience=3)
  with monkeypatch.context() as patch:
    patch.setattr(loop._Run, 'steps', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      fit(tmp_path / 'parts', best_metric='skill', patience=3)
  assert [row['step'] for row in logged(tmp_path / 'parts') if 'valid/skill' in row] == [2, 4]
  fit(tmp_path / 'parts', best_metric='skill', patience=3)
  notes = [checkpoint.read_notes(tmp_path / name / 'checkpoints' / '10')['best'] for name in ('parts', 'whole')]
  assert notes[0] == notes[1] and logged(tmp_path / 'parts') == logged(tmp_path / 'whole')


def test_patience_ends_a_run_that_never_had_a_number(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr('tests.trainers.test_best.SKILL', dict.fromkeys(SKILL, float('nan')))
  assert int(fit(tmp_path / 'run', best_metric='skill', patience=2).step) == 4
  assert 'Ended at step 4: none of 2 evaluations had a finite skill' in capsys.readouterr().out


def test_a_new_best_is_saved_whenever_it_is_found(tmp_path):
  fit(tmp_path / 'run', best_metric='skill', save_every=0)
  assert kept(tmp_path / 'run') == [4, 12]


def test_an_unknown_metric_is_refused_before_the_first_step(tmp_path):
  with pytest.raises(ConfigError, match="run.best_metric 'skil'. Did you mean 'skill'. Known: loss, skill"):
    fit(tmp_path / 'run', best_metric='skil')
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


@pytest.mark.slow
def test_the_best_of_a_run_without_notes_of_it_is_still_kept(tmp_path):
  directory = tmp_path / 'run'
  fit(directory, best_metric='skill', steps=8)
  for step in kept(directory):
    path = directory / 'checkpoints' / str(step) / 'notes' / 'metadata'
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'best'}))
  fit(directory, best_metric='skill')
  assert kept(directory) == [4, 12]
