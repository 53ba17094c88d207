"""Settings that would do harm without a word are refused, and the command that a run suggests can be used as it stands."""

import math
from pathlib import Path
import shlex

import pytest
import tyro

from decoders.command import GenerateConfig
from decoders.prompts import check_room, encode
from jaxlm.config import ModelConfig
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.language_model import LanguageModel
from trainers import suggestion
from trainers.config import OptimizerConfig, RunConfig
from trainers.pretrain import EvalConfig


@pytest.mark.parametrize(
  'kind, field, bad, good',
  [
    (OptimizerConfig, 'clip_norm', (-1.0, math.nan, math.inf), 0.0),
    (OptimizerConfig, 'eps', (0.0, -1e-8, math.nan, math.inf), 1e-30),
    (OptimizerConfig, 'weight_decay', (-0.1, math.nan), 0.0),
    (OptimizerConfig, 'learning_rate', (-1.0, math.nan, math.inf), 0.0),
    (OptimizerConfig, 'beta1', (1.0, math.nan), 0.0),
    (OptimizerConfig, 'schedule', ('cosin',), 'cosine'),
    (RunConfig, 'seed', (-1, 2**32, 2**64), 2**32 - 1),
    (RunConfig, 'steps', (0, 2**31), 2**31 - 1),
    (RunConfig, 'ema_decay', (1.0, math.nan), 0.0),
    (EvalConfig, 'batches', (0, -3), None),
    (EvalConfig, 'sample_tokens', (-1,), 0),
  ],
)
def test_values_outside_their_range_are_named(kind, field, bad, good):
  assert getattr(kind(**{field: good}), field) == good
  for value in bad:
    with pytest.raises(ValueError, match=f'{field}.*{str(value).replace("+", ".")}'):
      kind(**{field: value})


def small(max_length):
  config = ModelConfig(vocab_size=260, num_layers=1, model_dim=8, num_heads=1, num_kv_heads=1, max_length=max_length)
  return LanguageModel(config, None, ByteTokenizer())


@pytest.mark.parametrize('directory', ['runs/smoke', '/data/my runs/a & b', "it's", '-x', 'größe'])
@pytest.mark.parametrize(
  'prompts, expected',
  [
    (['The '], 'The '),
    (['$(rm x) `y` "z"'], '$(rm x) `y` "z"'),
    (["don't!"], "don't!"),
    (['-', '--stop', '', 'x' * 99, 'yes'], 'yes'),
    ([], 'Once'),
  ],
)
@pytest.mark.parametrize('max_length', [64, 1024])
def test_the_suggested_command_works_as_printed(directory, prompts, expected, max_length):
  lm = small(max_length)
  words = shlex.split(suggestion.generate_command(Path(directory), lm, prompts))
  assert words[:3] == ['python', '-m', 'decoders.generate']
  config = tyro.cli(GenerateConfig, args=words[3:])
  assert Path(config.model) == Path(directory)
  if 'x' * 99 in prompts and max_length > 99:
    expected = 'x' * 99
  assert config.prompt == (expected,)
  longest = len(encode(lm, config.prompt)[0])
  check_room(longest, config.max_new_tokens, max_length)
  assert config.max_new_tokens == min(128, max_length - longest)


def test_the_command_of_a_model_with_hardly_any_room_fits_it():
  words = shlex.split(suggestion.generate_command(Path('run'), small(3), ['The ']))
  assert words[-4:] == ['--prompt', 'a', '--max-new-tokens', '2']
