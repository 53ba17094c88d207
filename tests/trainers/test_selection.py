"""The best checkpoint is selected by the evaluations, and `jaxlm.load` opens it."""

import json

import chex
import jax
import pytest

from jaxlm.io import checkpoint
from tests.trainers import tiny
from trainers import metrics, selection


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns (run directory, its task's stand-in) of a run whose evaluation of step 4 is made the best one."""
  directory = tmp_path_factory.mktemp('selection') / 'run'
  config = tiny.config(directory, keep=9)
  tiny.fit(config)
  rows = metrics.read(directory)
  for row in rows:
    if 'valid/loss' in row:
      row['valid/loss'] = float(row['step'])
  (directory / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))

  class Task:
    best_metric, higher_is_better = 'loss', ()

  Task.config = config
  return directory, Task


@pytest.mark.slow  # Every trainer that selects has a quick test of it.
def test_the_step_of_the_best_evaluation_is_loaded(run):
  directory, task = run
  assert selection.selected_step(task, directory) == 4 and selection.selected_step(task, directory, last=True) == 8
  load = lambda step=None: jax.device_get(checkpoint.load_run(directory, 'float32', step=step)[1])
  fourth, last = load(4), load(8)
  selection.select(directory, 4, 8)
  chex.assert_trees_all_equal(load(), fourth)
  selection.select(directory, 8, 8)  # Another setting: the last step.
  chex.assert_trees_all_equal(load(), last)


def test_results_count_only_for_the_same_facts(tmp_path):
  path = tmp_path / 'r.json'
  assert not selection.measured(path, {})
  path.write_text('{"step": 3, "metrics": {}}')
  assert selection.measured(path, {'step': 3}) and not selection.measured(path, {'step': 4})
  path.write_text('{"step": 3')
  assert not selection.measured(path, {'step': 3})
