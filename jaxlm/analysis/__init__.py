"""Measurements of a model: attention sinks, lazy layers, forward and reverse losses, likelihoods.

  jaxlm.analysis.sink_metric(weights_LBNTS, eps=0.3)    # Sink_k of each position, from attention maps
  jaxlm.analysis.sinks(lm, tokens)                      # Sink_k and related numbers of a model; maps are not kept
  jaxlm.analysis.laziness(lm, tokens)                   # how lazy each layer is, along a prompt and after it
  jaxlm.analysis.score_documents(lm, texts)             # each text's losses forward and in reverse
  jaxlm.analysis.document_losses(lm, texts)             # loss, perplexity, bits per byte on held-out text
  jaxlm.analysis.answer_choices(lm, questions)          # multiple choice by likelihood

Names are imported on first use, so that a command's help costs nothing.
"""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from jaxlm.analysis.direction.files import read_scores as read_scores
  from jaxlm.analysis.direction.planted import planted_table as planted_table
  from jaxlm.analysis.direction.records import Score as Score
  from jaxlm.analysis.direction.scores import score_documents as score_documents
  from jaxlm.analysis.lazy.report import LazinessReport as LazinessReport
  from jaxlm.analysis.lazy.report import laziness as laziness
  from jaxlm.analysis.lazy.scores import Consistency as Consistency
  from jaxlm.analysis.lazy.scores import consistency as consistency
  from jaxlm.analysis.sink.inputs import inputs as inputs
  from jaxlm.analysis.sink.probe import Probe as Probe
  from jaxlm.analysis.sink.probe import qk_angles as qk_angles
  from jaxlm.analysis.sink.report import SinkReport as SinkReport
  from jaxlm.analysis.sink.report import sink_sums as sink_sums
  from jaxlm.analysis.sink.report import sinks as sinks
  from jaxlm.analysis.sink.scores import mean_attention as mean_attention
  from jaxlm.analysis.sink.scores import proxy as proxy
  from jaxlm.analysis.sink.scores import row_mass as row_mass
  from jaxlm.analysis.sink.scores import sink_metric as sink_metric
  from jaxlm.evaluation.bootstrap import paired_difference as paired_difference
  from jaxlm.evaluation.choices import Question as Question
  from jaxlm.evaluation.choices import answer_choices as answer_choices
  from jaxlm.evaluation.choices import read_questions as read_questions
  from jaxlm.evaluation.documents import document_losses as document_losses
  from jaxlm.evaluation.likelihood import likelihoods as likelihoods

# A submodule hides a function of the same name once it is imported. The modules sinks.py and laziness.py have names of public
# functions, so no other module may import them; they are command lines only.
_PUBLIC = {
  **dict.fromkeys(('Question', 'answer_choices', 'read_questions'), 'jaxlm.evaluation.choices'),
  'document_losses': 'jaxlm.evaluation.documents',
  'inputs': 'jaxlm.analysis.sink.inputs',
  'likelihoods': 'jaxlm.evaluation.likelihood',
  'paired_difference': 'jaxlm.evaluation.bootstrap',
  'planted_table': 'jaxlm.analysis.direction.planted',
  'read_scores': 'jaxlm.analysis.direction.files',
  'Score': 'jaxlm.analysis.direction.records',
  'score_documents': 'jaxlm.analysis.direction.scores',
  **dict.fromkeys(('LazinessReport', 'laziness'), 'jaxlm.analysis.lazy.report'),
  **dict.fromkeys(('Consistency', 'consistency'), 'jaxlm.analysis.lazy.scores'),
  **dict.fromkeys(('Probe', 'qk_angles'), 'jaxlm.analysis.sink.probe'),
  **dict.fromkeys(('SinkReport', 'sink_sums', 'sinks'), 'jaxlm.analysis.sink.report'),
  **dict.fromkeys(('mean_attention', 'proxy', 'row_mass', 'sink_metric'), 'jaxlm.analysis.sink.scores'),
}
__getattr__, __dir__ = lazily(__name__, _PUBLIC)
