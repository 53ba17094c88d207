"""What a model does, measured: sinks, laziness, direction.

  jaxlm.analysis.sink_metric(weights_LBNTS, eps=0.3)    # attention maps -> Sink_k of each position
  jaxlm.analysis.sinks(lm, tokens)                      # the same and more for a model, without keeping its maps
  jaxlm.analysis.laziness(lm, tokens)                   # how lazy each layer is, along a prompt and after it
  jaxlm.analysis.score_documents(lm, texts)             # each text's losses forward and in reverse
  jaxlm.analysis.document_losses(lm, texts)             # loss, perplexity, bits per byte on held-out text
  jaxlm.analysis.answer_choices(lm, questions)          # multiple choice by likelihood

Names are imported on first use, so that a command's help costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxlm.analysis.bootstrap import paired_difference as paired_difference
  from jaxlm.analysis.direction_files import read_scores as read_scores
  from jaxlm.analysis.direction_planted import planted_table as planted_table
  from jaxlm.analysis.direction_scores import Score as Score
  from jaxlm.analysis.direction_scores import score_documents as score_documents
  from jaxlm.analysis.evaluate_choices import Question as Question
  from jaxlm.analysis.evaluate_choices import answer_choices as answer_choices
  from jaxlm.analysis.evaluate_choices import read_questions as read_questions
  from jaxlm.analysis.evaluate_scores import document_losses as document_losses
  from jaxlm.analysis.laziness_report import LazinessReport as LazinessReport
  from jaxlm.analysis.laziness_report import laziness as laziness
  from jaxlm.analysis.laziness_scores import Consistency as Consistency
  from jaxlm.analysis.laziness_scores import consistency as consistency
  from jaxlm.analysis.likelihood import likelihoods as likelihoods
  from jaxlm.analysis.sink_inputs import inputs as inputs
  from jaxlm.analysis.sink_probe import Probe as Probe
  from jaxlm.analysis.sink_probe import qk_angles as qk_angles
  from jaxlm.analysis.sink_report import SinkReport as SinkReport
  from jaxlm.analysis.sink_report import sink_sums as sink_sums
  from jaxlm.analysis.sink_report import sinks as sinks
  from jaxlm.analysis.sink_scores import mean_attention as mean_attention
  from jaxlm.analysis.sink_scores import proxy as proxy
  from jaxlm.analysis.sink_scores import row_mass as row_mass
  from jaxlm.analysis.sink_scores import sink_metric as sink_metric

# No module is called as a function is: importing it would hide the function. `jaxlm.analysis.sinks` as a module is the
# command line, which nothing imports; so are `jaxlm.analysis.laziness`, `jaxlm.analysis.direction` and `jaxlm.analysis.evaluate`.
_PUBLIC = {
  **dict.fromkeys(('Question', 'answer_choices', 'read_questions'), 'jaxlm.analysis.evaluate_choices'),
  'document_losses': 'jaxlm.analysis.evaluate_scores',
  'inputs': 'jaxlm.analysis.sink_inputs',
  'likelihoods': 'jaxlm.analysis.likelihood',
  'paired_difference': 'jaxlm.analysis.bootstrap',
  'planted_table': 'jaxlm.analysis.direction_planted',
  'read_scores': 'jaxlm.analysis.direction_files',
  **dict.fromkeys(('Score', 'score_documents'), 'jaxlm.analysis.direction_scores'),
  **dict.fromkeys(('LazinessReport', 'laziness'), 'jaxlm.analysis.laziness_report'),
  **dict.fromkeys(('Consistency', 'consistency'), 'jaxlm.analysis.laziness_scores'),
  **dict.fromkeys(('Probe', 'qk_angles'), 'jaxlm.analysis.sink_probe'),
  **dict.fromkeys(('SinkReport', 'sink_sums', 'sinks'), 'jaxlm.analysis.sink_report'),
  **dict.fromkeys(('mean_attention', 'proxy', 'row_mass', 'sink_metric'), 'jaxlm.analysis.sink_scores'),
}


def __getattr__(name: str):
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted([*globals(), *_PUBLIC])
