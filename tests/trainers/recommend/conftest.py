"""Tiny runs of the three stages, one after the other, for all tests of the trainer of recommenders."""

import jax
import pytest

from tests.trainers.recommend.runs import draft, ids, target
from trainers import recommend


@pytest.fixture(scope='session')
def ids_run(tmp_path_factory):
  """Returns a run directory of stage ids."""
  directory = tmp_path_factory.mktemp('recommend') / 'x-ids'
  recommend.main(ids(directory))
  return directory


@pytest.fixture(scope='session')
def target_run(ids_run):
  """Returns (run directory, last state) of a target that never stopped."""
  directory = ids_run.with_name('x-target')
  return directory, jax.device_get(recommend.main(target(ids_run, directory)))


@pytest.fixture(scope='session')
def draft_run(target_run):
  """Returns (run directory, last state) of a draft that never stopped."""
  directory = target_run[0].with_name('x-draft')
  return directory, jax.device_get(recommend.main(draft(target_run[0], directory)))
