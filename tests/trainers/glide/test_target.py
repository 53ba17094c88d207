"""What may be a target, and the small one that a run without a target trains first."""

import dataclasses
import json

import jax
import pytest

import jaxlm
from jaxlm.errors import CheckpointError
from jaxlm.glide_model import GlideDraft
from jaxlm.language_model import LanguageModel
from tests.models import init, tiny_model
from tests.trainers.glide.conftest import TARGET
from tests.trainers.glide.runs import config, parse
from trainers import glide, metrics, pretrain
from trainers.config import ConfigError
from trainers.glide import target as targets


def test_what_cannot_be_a_target_is_named_before_anything_is_written(target, text, tmp_path, monkeypatch):
  made = config(target, text, tmp_path / 'run')
  with pytest.raises(CheckpointError, match='--target .*nowhere: There is no model'):
    glide.main(dataclasses.replace(made, target=str(tmp_path / 'nowhere')))
  lm = LanguageModel(TARGET, init(TARGET, jax.random.key(7)), jaxlm.load(target).tokenizer)
  for other, message in (
    (GlideDraft(made.model, {}), 'is a GlideDraft; a draft needs a decoder-only language model'),
    (
      dataclasses.replace(lm, config=TARGET.replace(direction='reverse')),
      "direction='reverse'; a draft needs a model that",
    ),
    (
      dataclasses.replace(lm, config=TARGET.replace(direction='both', direction_signal='token')),
      "direction_signal='token', which the training of drafts does not know",
    ),
    (tiny_model(), 'has no tokenizer, which a draft shares'),
    (
      dataclasses.replace(lm, config=TARGET.replace(max_length=20)),
      'data.length=24 is longer than --target .* reads: 20',
    ),
    (
      dataclasses.replace(lm, config=TARGET.replace(num_layers=1)),
      'does not fit --target .*draft layers read one target layer each',
    ),
  ):
    monkeypatch.setattr(jaxlm, 'load', lambda *_, other=other: other, raising=False)
    deep = dataclasses.replace(made, model=made.model.replace(num_layers=2))
    with pytest.raises(ConfigError, match=message):
      glide.main(deep)
  assert not (tmp_path / 'run').exists()
  with pytest.raises(ConfigError, match="Unknown target_preset 'smok'. Did you mean 'smoke'"):
    targets.named(parse('smoke', '--target-preset', 'smok'), tmp_path / 'run')


@pytest.mark.slow
def test_a_run_without_a_target_trains_a_small_one_once(text, tmp_path, monkeypatch, capsys):
  quick = (
    '--run.steps',
    '2',
    '--optimizer.warmup-steps',
    '1',
    '--eval.prompts',
    '1',
    '--run.directory',
    str(tmp_path / 'run'),
  )
  source = '--data.source', str(text / 'train.jsonl'), '--data.valid-source', str(text / 'valid.jsonl')
  made = parse('smoke', *quick, *source, '--data.batch-size', '8')
  preset = pretrain.PRESETS['smoke'][1]
  small = dataclasses.replace(
    preset, data=dataclasses.replace(preset.data, source=str(text / 'train.jsonl'), valid_source=str(text / 'valid.jsonl')),
    run=dataclasses.replace(preset.run, steps=4, tensorboard=False), eval=dataclasses.replace(preset.eval, sample_tokens=0),
  )  # fmt: skip
  monkeypatch.setitem(pretrain.PRESETS, 'smoke', ('Small.', small))
  glide.main(made)
  assert 'No --target is given' in capsys.readouterr().out
  assert 1 <= metrics.read(tmp_path / 'run')[-1]['valid/accepted_length'] <= 5
  draft = jaxlm.load(tmp_path / 'run')
  assert draft.config.target.name == str(tmp_path / 'run-target')
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['target'] == str(tmp_path / 'run-target')
  assert jaxlm.load(tmp_path / 'run-target').config == draft.config.target.model
  monkeypatch.setattr(pretrain, 'main', None)  # The target is not trained again.
  glide.main(made)
