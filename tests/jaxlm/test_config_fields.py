"""The config.json of a run may say anything: each field is checked before anything is computed from it."""

import functools
import json

import pytest

from jaxlm import config as configs
from jaxlm.config import ModelConfig, RopeConfig
from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint
from jaxlm.language_model import load
from tests.decoders.simlayerkv.test_context import edits
from tests.models import TINY


@pytest.mark.parametrize(
  'config', [TINY, ModelConfig(rope=RopeConfig(theta=5e8), windows=(3, 0), attention_offset='neg_log_n')]
)
def test_what_was_written_is_read(config):
  assert configs.model_config(configs.to_dict(config)) == config


@pytest.mark.slow
def test_every_field_of_a_run_is_checked_before_anything_is_computed_from_it(tmp_path, monkeypatch):
  whole = {'trainer': 'pretrain', **{name: {'field': 1} for name in ('data', 'optimizer', 'run', 'eval', 'mesh')}}
  whole['model'] = configs.to_dict(TINY.replace(windows=(3, 0), attention_softcap=2.0))
  (tmp_path / 'checkpoints' / '3').mkdir(parents=True)
  monkeypatch.setattr(checkpoint, 'read', lambda folder, abstract: {'params': abstract['params']})
  monkeypatch.setattr(checkpoint, 'read_notes', lambda folder: {})
  file, refused = tmp_path / 'config.json', 0
  for path, edit in edits(whole):
    saved = json.loads(json.dumps(whole))
    place = functools.reduce(lambda x, key: x[key], path[:-1], saved)
    if edit is None:
      del place[path[-1]]
    else:
      place[path[-1]] = edit[0]
    file.write_text(json.dumps(saved))
    try:
      config = load(tmp_path, 'float32').config
    except CheckpointError as e:
      assert str(tmp_path) in str(e)
      refused += 1
      continue
    # What is read is a config that means what the file says, or a default.
    model = configs.to_dict(config.replace(dtype=saved['model'].get('dtype', 'bfloat16')))
    expected = configs.to_dict(ModelConfig()) | saved['model']
    for name in ('rope', 'sink', 'dropout'):
      expected[name] = configs.to_dict(ModelConfig())[name] | expected[name]
    assert model == {name: expected[name] for name in model}, (path, edit)
  assert refused > 300


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'vocab_size': 2**40}, 'model.vocab_size=1099511627776 is out of range: at most 100000000'),
    ({'num_layers': 10_001}, 'model.num_layers=10001 is out of range: at most 10000'),
    ({'windows': [1, '2']}, r"model.windows\[1\] is '2'; expected a whole number"),
    ({'gated_mlp': 1}, 'model.gated_mlp is 1; expected true or false'),
    ({'rope': {'theta': None}}, 'model.rope.theta is None; expected a number'),
    ({'rope': {'thet': 1}}, "Unknown model.rope config field 'thet'. Did you mean 'theta'"),
    ({'norm': 'rmsnor'}, "model.norm is 'rmsnor'; expected one of 'rmsnorm', 'layernorm'"),
    ({'norm_eps': -1e-5}, 'norm_eps=-1e-05 must not be negative'),
    ([], r'model is \[\]; expected an object'),
  ],
)
def test_a_field_is_named_with_its_value_and_what_was_expected(fields, message):
  with pytest.raises(ValueError, match=message):
    configs.model_config(fields)
