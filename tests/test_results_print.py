"""Public results print as a line or two in a shell or a notebook, whatever arrays they hold."""

import numpy as np
import pytest

import decoders
from decoders.simlayerkv import LazyConfig
from jaxlm import analysis
from jaxlm.analysis.direction.files import Scores
from jaxlm.evaluation.choices import Choices
from jaxlm.evaluation.documents import Losses
from tests.decoders.classification.models_made import made
from tests.decoders.translation.models_made import tiny
from tests.glide_drafts import tiny_draft
from tests.models import tiny_model

TOKENS = np.arange(64).reshape(2, 32) % 50


def results():
  lm = tiny_model()
  yield lm, '2 layers x 24'
  yield decoders.generate(lm, [[1, 2, 3]], max_new_tokens=8, eos_id=None), '1 rows, 8 tokens'
  yield (
    decoders.simlayerkv.compress(lm, [list(range(20))], lazy=LazyConfig(n_recent=4, n_full=1, stage='prefill'), room=8),
    '1 rows of 20',
  )
  yield tiny(), 'Seq2SeqModel(1 + 2 layers x 8'
  yield tiny_draft(), 'GlideDraft(chain, 1 layers x 18'
  yield decoders.translate(tiny(), ['abc'], max_new_tokens=1), '1 rows, 1 tokens'
  yield made(), 'TextClassifier(word-context, vocabulary 10, mlp'
  labelled = decoders.classify(made(), ['a b'], explain=True)
  yield labelled, 'Classifications(1 texts, topic, tags; first '
  yield labelled.contributions[0], 'Contributions(2 words; for '
  yield analysis.sinks(lm, TOKENS), 'Sink_1 '
  yield analysis.laziness(lm, TOKENS[0], recent=8, initial=1, queries=4, new_tokens=4), 'of 2 layers lazy'
  yield Losses(np.array([10, 5]), np.array([40, 20]), {'forward': np.array([20.0, 10.0])}), 'forward 2.0000 nats'
  yield Choices([np.array([-1.0, -2.0])], [np.ones(2)], [np.ones(2)], np.array([0])), '100.0% by sum'
  yield Scores('a.parquet', {}, 3, {'id': np.arange(2), 'loss': np.zeros(2)}, ()), '2 of 3 documents of a.parquet'


@pytest.fixture(scope='module')
def printed():
  return [(repr(result), str(result), says) for result, says in results()]


def test_results_are_short_and_say_what_matters(printed):
  for shown, string, says in printed:
    assert says in shown and shown == string
    assert len(shown) < 300 and 'array(' not in shown and 'Array(' not in shown
