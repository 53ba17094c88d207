"""The beams of a draft are those that the target searches; they are continued, used again, and refused for another target."""

import dataclasses

import jax
import pytest

from decoders import atspeed
import jaxlm
from jaxlm.data import history_batches
from jaxlm.errors import DataError
from tests.interruption import interrupted_at
from trainers.recommend import ids as stage
from trainers.recommend.beams import TeacherBeams
from trainers.recommend.config import BeamConfig


@pytest.fixture
def beams(target_run, ids_run, tmp_path):
  lm, data = jaxlm.load(target_run[0]), stage.load(ids_run)
  rows = history_batches.prefixes(history_batches.training_sequences(data.histories), 4, most=20)
  settings = BeamConfig(count=3, batch_size=2)
  return TeacherBeams(tmp_path / 'beams.jsonl', lm, data.catalogue, rows, settings, lambda text: None)


def test_beams_are_the_targets_lists_and_are_continued(beams, monkeypatch):
  with interrupted_at(monkeypatch, atspeed, 'recommend', 2):
    beams.make()
  assert len(beams.path.read_text().splitlines()) == 16
  beams.make()
  found = beams.read()
  prompts = [beams.items.prompt(items[:-1]) for items in beams.rows.items]
  expected = atspeed.recommend(beams.lm, None, beams.items.trie(), prompts, k=3, batch_size=2)
  assert found.shape == (20, 3, 2) and (found == expected.tokens).all()
  monkeypatch.setattr(atspeed, 'recommend', None, raising=False)
  beams.make()  # It is there already.
  params = jax.tree.map(lambda x: x * 2, beams.lm.params)
  other = dataclasses.replace(beams, lm=dataclasses.replace(beams.lm, params=params))
  with pytest.raises(DataError, match="made from something else: its target's digest is"):
    other.make()
