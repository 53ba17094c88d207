"""Shapes of classifiers that cannot work are named with their numbers, and what was written is read."""

import pytest

from jaxlm import config as configs
from jaxlm.exam_config import Backbone, Column, ExamConfig, exam_config
from tests.models import TINY


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'region': 4}, 'model.region=4 must be odd'),
    ({'max_length': 6}, 'model.max_length=6 has no room for a word'),
    ({'columns': ()}, 'model.columns is empty'),
    ({'columns': (Column('a'), Column('a'))}, 'a, a have the same name twice'),
    ({'aggregator': 'sum', 'residual': 'sum'}, "model.residual='sum' needs model.aggregator='mlp'"),
    ({'aggregator': 'last'}, "model.aggregator='last' needs an encoder"),
    ({'encoder': 'lm', 'side': 'left'}, "model.side='left' and model.front=-1 do not fit model.encoder='lm'"),
    ({'encoder': 'lm', 'front': 1}, "model.front=1 do not fit model.encoder='lm'"),
    ({'encoder': 'grue'}, "Unknown encoder 'grue'. Did you mean 'gru'"),
    ({'dropout': 1.0}, 'model.dropout=1.0'),
    ({'front': -2}, 'model.front=-2'),
    ({'regions': (5, 9)}, r'model.regions=\(5, 9\) must be different odd numbers below model.region=7'),
    ({'regions': (3, 3)}, 'must be different odd numbers'),
    ({'encoder': 'gru', 'units': 'scalar'}, "need a region embedding, not model.encoder='gru'"),
    ({'encoder': 'context-word', 'units': 'none'}, "model.units='none' needs model.encoder='word-context'"),
    ({'dim': 0}, 'model.dim=0 must be at least 1'),
  ],
)
def test_shapes_that_cannot_work_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    ExamConfig(**changes)


def test_what_was_written_is_read():
  config = ExamConfig(
    encoder='lm', vocab_size=50, columns=(Column('a', 3), Column('b', 2, True)), lm=Backbone('x', 'y', TINY)
  )
  assert exam_config(configs.to_dict(config)) == config


def test_positions_follow_from_the_encoder():
  assert ExamConfig().positions == 250 and ExamConfig().hidden_units == 500 and ExamConfig().padding_in_front == 3
  assert ExamConfig(encoder='gru').positions == 256 and ExamConfig(encoder='gru').padding_in_front == 0
  assert ExamConfig(encoder='ngrams', ngrams=3).positions == 256 + 255 + 254
  assert ExamConfig(regions=(5, 3)).width == 3 * 128 and ExamConfig(regions=(5, 3)).positions == 250
