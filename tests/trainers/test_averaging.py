"""The average of the last checkpoints is their mean, is what is loaded, and does not depend on where a run was stopped."""

import chex
import jax
import numpy as np
import pytest

from jaxlm.io import checkpoint
from tests.trainers import tiny
from tests.trainers.test_loop import interrupt_at, logged
from trainers import metrics
from trainers.averaging import averaged_steps
from trainers.config import RunConfig

SETTINGS = dict(steps=8, save_every=2, keep=1, average_last=3)


@pytest.mark.parametrize(
  'there, expected',
  [
    ([2, 4, 6, 8], [4, 6, 8]),
    ([2, 4, 5, 6, 7, 8], [4, 6, 8]),
    ([4, 6, 7], [4, 6, 7]),
    ([2], [2]),
    ([], []),
  ],
)
def test_checkpoints_between_those_of_save_every_do_not_count(there, expected):
  assert averaged_steps(RunConfig(save_every=2, average_last=3), there) == expected


@pytest.mark.slow
def test_average_is_the_mean_and_that_of_a_run_that_never_stopped(tmp_path, monkeypatch):
  tiny.fit(tiny.config(tmp_path / 'whole', **SETTINGS))
  assert checkpoint.steps(tmp_path / 'whole' / 'checkpoints') == [4, 6, 8]
  _, average, _ = checkpoint.load_run(tmp_path / 'whole')
  each = [checkpoint.load_run(tmp_path / 'whole', step=step)[1] for step in (4, 6, 8)]
  chex.assert_trees_all_close(average, jax.tree.map(lambda *xs: np.mean(xs, axis=0), *each), rtol=1e-6, atol=1e-7)
  assert max(float(abs(a - b).max()) for a, b in zip(jax.tree.leaves(average), jax.tree.leaves(each[-1]))) > 1e-3
  for step in (5, 7):
    interrupt_at(monkeypatch, step)
    with pytest.raises(SystemExit):
      tiny.fit(tiny.config(tmp_path / 'parts', **SETTINGS))
    monkeypatch.undo()
  tiny.fit(tiny.config(tmp_path / 'parts', **SETTINGS))
  chex.assert_trees_all_equal(checkpoint.load_run(tmp_path / 'parts')[1], average)
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole')
  assert [row['step'] for row in metrics.read(tmp_path / 'whole') if 'average/loss' in row] == [8]


@pytest.mark.slow
def test_a_longer_run_makes_a_new_average_and_the_old_one_is_not_loaded_meanwhile(tmp_path, monkeypatch):
  tiny.fit(tiny.config(tmp_path / 'run', **SETTINGS))
  interrupt_at(monkeypatch, 9)
  with pytest.raises(SystemExit):
    tiny.fit(tiny.config(tmp_path / 'run', **SETTINGS | {'steps': 12}))
  monkeypatch.undo()
  newest = checkpoint.load_run(tmp_path / 'run', step=9)[1]
  chex.assert_trees_all_equal(checkpoint.load_run(tmp_path / 'run')[1], newest)
  tiny.fit(tiny.config(tmp_path / 'run', **SETTINGS | {'steps': 12}))
  assert checkpoint.steps(tmp_path / 'run' / 'average') == [12]
  assert checkpoint.read_notes(tmp_path / 'run' / 'average' / '12')['averaged'] == [8, 10, 12]


def test_settings_that_cannot_be_averaged_are_refused():
  with pytest.raises(ValueError, match='run.average_last=2 needs checkpoints'):
    RunConfig(average_last=2, save_every=0)
  with pytest.raises(ValueError, match='run.average_last=2 and run.ema_decay=0.9 are two averages'):
    RunConfig(average_last=2, ema_decay=0.9)
