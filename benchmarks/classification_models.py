"""Systems of the study of classification: what is trained by trainers.classify, and scikit-learn's linear models.

A system is trained once on each set and seed: what was measured of it is kept in the cache folder, its parameters are not. Training
time is that of the whole run, with compilation and evaluation, prediction time that of texts to labels, without compilation.
"""

from collections.abc import Callable
import json
from pathlib import Path
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks.classification_texts import SETTINGS, TextSet
from benchmarks.made_before import kept
from jaxlm.evaluation.classification import Scores

VERSION = 1
"""Raise it when training changes in a way that settings do not show: then nothing that was kept before is used."""
VOCABULARY, BATCH = 10_000, 32
# The presets of trainers.classify; on the states of a language model the scores' mean is a better start than their sum.
TRAINED = {
  'EXAM': 'docstrings',
  'EXAM, no residual': 'docstrings',
  'encoder alone': 'region',
  'fastText': 'fasttext',
  'GRU': 'gru',
  'EXAM on MiniLM': 'lm',
}
LINEAR = ('TF-IDF, linear', 'MiniLM, logistic regression')
SYSTEMS = (*TRAINED, *LINEAR)
METRICS = ('accuracy', 'macro_f1', 'micro_f1', 'p@1', 'p@3', 'ece')


def flags(texts: TextSet, system: str, seed: int, directory: Path, tiny: bool) -> list[str]:
  """Returns the command line of trainers.classify for a system."""
  setting = SETTINGS[texts.name]
  steps = 24 if tiny else setting.steps
  found = [TRAINED[system], '--data.labels', 'labels', '--data.empty', 'skip', '--data.batch-size', str(BATCH)]
  for part, flag in (('train', '--data.source'), ('valid', '--data.valid-source'), ('test', '--data.test-source')):
    found += [flag, str(texts.files[part])]
  if texts.multilabel:
    found += ['--data.multilabel', 'labels']
  if system == 'EXAM on MiniLM':
    found += ['--lm', 'minilm', '--lm-cache', '8000', '--model.max-length', str(_length(texts))]
  else:
    found += ['--data.vocab-size', str(VOCABULARY), '--model.max-length', str(setting.length)]
  if system == 'EXAM, no residual':
    found += ['--model.residual', 'none']
  if system == 'fastText':
    found += ['--model.buckets', '20000']
  each = str(max(1, steps // 4))
  found += ['--run.steps', str(steps), '--run.eval-every', each, '--run.save-every', each, '--run.no-tensorboard']
  return found + ['--run.seed', str(seed), '--data.seed', str(seed), '--run.directory', str(directory)]


LM_LENGTH = 64
"""Tokens of a text that MiniLM reads."""


def measured(
  texts: TextSet, system: str, seed: int, *, tiny: bool = False, train: bool = True
) -> dict[str, Any] | None:
  """Returns what is measured of a system: metrics on the test texts, seconds, and parameters; None if it was not and `train` is off."""
  make = (lambda: _trained(texts, system, seed, tiny)) if system in TRAINED else (lambda: linear(texts, system))
  shown = flags(texts, system, seed, Path('run'), tiny)[:-1] if system in TRAINED else system
  facts = [VERSION, *texts.facts, [x for x in shown if x not in map(str, texts.files.values())]]
  return kept('classification', facts, make if train else None)


class _Clock:
  """Seconds and processor seconds since it was made; the machine may have other work, which only the latter leave out."""

  def __init__(self):
    self.start = time.perf_counter(), time.process_time()

  def took(self) -> tuple[float, float]:
    return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def _trained(texts: TextSet, system: str, seed: int, tiny: bool) -> dict[str, Any]:
  import decoders
  import jaxlm
  from trainers import classify, command_line

  with tempfile.TemporaryDirectory() as folder:
    directory = Path(folder) / 'run'
    args = flags(texts, system, seed, directory, tiny)
    start = _Clock()
    classify.main(command_line.parse(classify.PRESETS, 'docstrings', prog='classify', description='', args=args))
    took = start.took()
    results = json.loads((directory / 'classification.json').read_text())
    model = jaxlm.load(directory)
    has_words = [text for text in texts.texts['test'] if model.tokenizer.encode(text, model.config)]
    decoders.classify(model, has_words[:64])  # Compiles.
    start = _Clock()
    decoders.classify(model, has_words[:1000])
    predicting = start.took()
  return {
    'metrics': results['metrics']['test'], 'held-out': results['metrics']['held-out'], 'step': results['selected_step'],
    'training': took, 'predicting': predicting, 'predicted': len(has_words[:1000]),
    'parameters': sum(x.size for x in jax.tree.leaves(model.params)),
  }  # fmt: skip


def linear(texts: TextSet, system: str) -> dict[str, Any]:
  """Returns what is measured of a linear model of scikit-learn; its regularisation is chosen on the held-out texts."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.multiclass import OneVsRestClassifier
  from sklearn.svm import LinearSVC

  start = _Clock()
  features = _tfidf(texts) if system == 'TF-IDF, linear' else _minilm(texts)
  several, tried = texts.multilabel, []
  for c in (1.0, 10.0):
    if several:
      one = OneVsRestClassifier(LogisticRegression(C=c, solver='liblinear'))
    else:
      one = LinearSVC(C=c) if system == 'TF-IDF, linear' else LogisticRegression(C=c, max_iter=300)
    one.fit(features('train'), texts.truth('train'))
    tried.append((_scores(texts, one, features('valid'), 'valid'), one))
  key = 'micro_f1_best' if several else 'accuracy'
  scores, best = max(tried, key=lambda pair: pair[0].metrics()[key])
  thresholds = scores.best_thresholds() if several else None
  training, start = start.took(), _Clock()
  found = _scores(texts, best, features('test', True), 'test', thresholds)
  predicting = start.took()
  size = sum(e.coef_.size for e in best.estimators_) if several else best.coef_.size
  return {
    'metrics': {k: v for k, v in found.metrics().items() if k != 'micro_f1_best'}, 'training': training, 'predicting': predicting,
    'predicted': len(texts.texts['test']), 'parameters': int(size),
  }  # fmt: skip


def _scores(texts: TextSet, model: Any, features: Any, part: str, thresholds: np.ndarray | None = None) -> Scores:
  scores = Scores(len(texts.names), texts.multilabel, thresholds)
  logits = model.decision_function(features)
  if logits.ndim == 1:  # Two classes.
    logits = np.stack([-logits, logits], axis=1) / 2
  scores.add(logits, texts.truth(part))
  return scores


def _tfidf(texts: TextSet) -> Callable[..., Any]:
  from sklearn.feature_extraction.text import TfidfVectorizer

  vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
  made = {'train': vectorizer.fit_transform(texts.texts['train'])}

  def features(part: str, again: bool = False) -> Any:
    if part not in made or again:
      made[part] = vectorizer.transform(texts.texts[part])
    return made[part]

  return features


def _minilm(texts: TextSet) -> Callable[..., Any]:
  """Returns a function: part -> embeddings of its texts, from the states that EXAM on MiniLM reads too."""
  import jaxlm
  from jaxlm import lm_states
  from jaxlm.data import class_batches, labelled, text_reader
  from jaxlm.exam_config import Backbone, Column, ExamConfig
  from jaxlm.text_classifier import weights_digest
  from trainers.classify import data

  lm = jaxlm.load('minilm', 'float32')
  backbone = Backbone('minilm', weights_digest(lm.params), lm.config)
  column = Column('labels', len(texts.names), texts.multilabel)
  model = ExamConfig(encoder='lm', lm=backbone, max_length=_length(texts), columns=(column,))
  reader = text_reader.TextReader(text_reader.LmTokens(lm.tokenizer), (column,), (tuple(texts.names),))

  def features(part: str, again: bool = False) -> Any:
    named = labelled.Fields(labels=('labels',), multilabel=('labels',) if texts.multilabel else ())
    opened = labelled.open_parts(str(texts.files[part]), fields=named, valid=str(texts.files[part])).train
    encoded = class_batches.encode(opened, reader, model)
    if again:  # What prediction costs.
      return lm_states.embed(lm, texts.texts[part], max_tokens=_length(texts))
    sums = np.add.reduceat(data.states_of(encoded, lm, model), encoded.corpus.offsets[:-1], axis=0)
    return np.asarray(lm_states.normalised(sums))

  return features


def _length(texts: TextSet) -> int:
  return min(SETTINGS[texts.name].length, LM_LENGTH)


def spread(values: list[float]) -> tuple[float, float]:
  """Returns (mean, standard deviation over seeds; nan for a single value)."""
  return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')


def summary(texts: TextSet, system: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the row of a system on a set: means over seeds, and of the set's main metric the standard error and the deviation."""
  key = main_metric(texts)
  mean, deviation = spread([100 * run['metrics'][key] for run in runs])
  # One seed says nothing of the spread over seeds; that over test texts is known.
  error = deviation / len(runs) ** 0.5 if len(runs) > 1 else (mean * (100 - mean) / len(texts.texts['test'])) ** 0.5
  row = {
    'table': texts.name,
    'system': system,
    'metric': key,
    'score %': round(mean, 2),
    'error': round(error, 2),
    'deviation': round(deviation, 2) if len(runs) > 1 else '',
  }
  for name in METRICS:
    if name != key:
      there = [run['metrics'][name] for run in runs if name in run['metrics']]
      # The margins of a support vector machine are no logits, so that they have no calibration.
      margins = name == 'ece' and system == 'TF-IDF, linear' and not texts.multilabel
      row[name] = round(spread(there)[0], 4) if there and not margins else ''
  median = lambda values: float(f'{np.median(list(values)):.3g}')
  row['training seconds'] = median(run['training'][0] for run in runs)
  row['training CPU seconds'] = median(run['training'][1] for run in runs)
  row['texts per CPU second'] = median(run['predicted'] / run['predicting'][1] for run in runs)
  return row | {'parameters': runs[0]['parameters'], 'seeds': len(runs)}


def main_metric(texts: TextSet) -> str:
  return 'micro_f1' if texts.multilabel else 'accuracy'
