"""Models learn: a target recommends better than popularity, and an aligned draft saves more than a third of the target's calls."""

import dataclasses
import json

import pytest

from trainers import recommend


def with_run(preset, directory, steps, **changes):
  config = recommend.PRESETS[preset][1]
  every = steps // 2
  run = dataclasses.replace(
    config.run, directory=str(directory), steps=steps, eval_every=every, save_every=every, tensorboard=False
  )
  return dataclasses.replace(config, run=run, **changes)


@pytest.mark.long
def test_a_draft_of_generated_data_saves_target_calls(tmp_path):
  target, draft = tmp_path / 'x-target', tmp_path / 'x-draft'
  recommend.main(with_run('target', target, 200))
  found = json.loads((target / 'recommendation.json').read_text())['metrics']
  assert found['model']['recall@10'] > 1.3 * found['popularity']['recall@10']
  beams = dataclasses.replace(recommend.PRESETS['draft'][1].beams, examples=1000)
  recommend.main(with_run('draft', draft, 150, target=str(target), beams=beams))
  found = json.loads((draft / 'recommendation.json').read_text())['metrics']
  # Strict verification accepts at least 1.5 of the draft's steps, so that it needs at most 2.5 calls instead of 4.
  assert 4 - found['strict'] <= 2.5
