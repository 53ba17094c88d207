"""The config of a draft: what is refused, and that it comes back from JSON."""

import dataclasses

import pytest

from jaxlm.config import to_dict
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.glide_config import GlideConfig, check_target, glide_config, with_target
from jaxlm.language_model import LanguageModel
from tests.models import TINY

LM = LanguageModel(TINY, None)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'block': 0}, 'block=0 must be at least 1'),
    ({'model_dim': 20, 'num_heads': 3}, 'not a multiple'),
    ({'model_dim': 9, 'num_heads': 3}, '= 3 is odd'),
    (
      {'num_layers': 2, 'layers': (0, 1, 1)},
      r'layers=\(0, 1, 1\) has 3 target layers, which 2 draft layers cannot share',
    ),
    ({'window': -1}, 'window=-1'),
    ({'draft': 'tree'}, "Unknown draft 'tree'"),
    ({'draft': 'parallel', 'eval_mask': 'paper'}, "needs eval_mask='strict'"),
  ],
)
def test_bad_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    GlideConfig(**changes)


def test_layers_must_be_those_of_the_target():
  with pytest.raises(ValueError, match='tiny .2 layers x 24.* has layers 0 to 1, not 5'):
    with_target(GlideConfig(layers=(5,)), LM, 'tiny')
  with pytest.raises(ValueError, match='num_layers=3 draft layers .* has only 2'):
    with_target(GlideConfig(num_layers=3), LM, 'tiny')
  with pytest.raises(ValueError, match='Drafting for a model needs a causal model'):
    with_target(GlideConfig(), LanguageModel(TINY.replace(causal=False), None), 'tiny')
  assert with_target(GlideConfig(num_layers=3, cross=False), LM, 'tiny').target_layers == ()


def test_by_default_the_last_layers_are_read_in_order():
  layers = lambda **changes: with_target(GlideConfig(**changes), LM, 'tiny').target_layers
  assert layers() == (1,) and layers(num_layers=2) == (0, 1) and layers(num_layers=2, layers=(1, 1)) == (1, 1)


def test_a_layer_may_read_several_layers_of_the_target():
  config = with_target(GlideConfig(num_layers=2, layers=(0, 1, 1, 0)), LM, 'tiny')
  assert config.layers_of(0) == (0, 1) and config.layers_of(1) == (1, 0)
  assert config.replace(cross=False).layers_of(1) == ()


def test_a_config_comes_back_from_json():
  lm = dataclasses.replace(LM, tokenizer=ByteTokenizer())
  config = with_target(GlideConfig(num_layers=2, layers=(1, 0), window=7), lm, 't')
  assert glide_config(to_dict(config)) == config and config.target.tokenizer == 'bytes-1'
  with pytest.raises(ValueError, match='model config field'):
    glide_config(to_dict(config) | {'blocks': 4})


def test_another_target_is_refused_and_the_same_in_another_dtype_is_not():
  config = with_target(GlideConfig(), dataclasses.replace(LM, tokenizer=ByteTokenizer()), 'tiny')
  check_target(config, LanguageModel(TINY.replace(dtype='bfloat16', remat='full'), None))
  rope = dataclasses.replace(TINY.rope, theta=5e5)
  for changes in ({'rope': rope}, {'num_kv_heads': 4}, {'vocab_size': 51}, {'windows': (4,)}):
    both = f'trained for tiny .2 layers.* and not for this model .*: {next(iter(changes))} is'
    with pytest.raises(ValueError, match=both):
      check_target(config, LanguageModel(TINY.replace(**changes), None))
  other = ByteTokenizer()
  other.fingerprint = 'another'
  with pytest.raises(ValueError, match='with the tokenizer bytes-1, and this model.* has the tokenizer another'):
    check_target(config, LanguageModel(TINY, None, other))
