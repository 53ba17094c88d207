"""The task of a text classifier: predict the label or the labels of each text, in one or several label columns."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data import class_batches
from jaxlm.data.class_batches import ClassBatches, EncodedTexts
from jaxlm.data.text_reader import TextReader
from jaxlm.evaluation.classification import Scores
from jaxlm.language_model import LanguageModel
from jaxlm.models import exam
from trainers import place_in_data, run_directory
from trainers.classify import results
from trainers.classify.config import ClassifyConfig
from trainers.classify.data import Data
from trainers.classify.loss import class_weights, loss_terms
from trainers.distributed import Layout
from trainers.step import Context
from trainers.task import Batch, Task

UP = (
  'accuracy',
  'macro_f1',
  'micro_f1',
  'micro_f1_best',
  'recall@5',
  'kanshan',
  'kanshan_p',
  'kanshan_standard',
  'kanshan_first_i',
)
UP += ('p@1', 'p@3', 'p@5')


class Classification(Task):
  """Training of a classifier. `config` is a ClassifyConfig whose model has the columns and the vocabulary of `reader`."""

  trainer = 'classify'
  unit = 'texts'
  loss_label = 'loss (nats per text)'
  kept = ('data.words', 'data.min_texts', 'data.vocab_size')

  def __init__(
    self,
    config: ClassifyConfig,
    reader: TextReader,
    data: Data,
    lm: LanguageModel | None = None,
    layout: Layout | None = None,
  ):
    self.config, self.reader, self.data, self.lm, self.layout = config, reader, data, lm, layout
    self.batch_size = config.data.batch_size
    self.batches = ClassBatches(data.train, config.model, self.batch_size, config.data.seed)
    self._weights = class_weights(config.class_weights, data.train, config.model.columns)
    prefixes = [f'{column.name}/' for column in config.model.columns]
    self._prefixes = prefixes if len(prefixes) > 1 else ['']
    self.higher_is_better = tuple(prefix + name for prefix in self._prefixes for name in UP)
    best = 'micro_f1_best' if config.model.columns[0].multilabel else 'accuracy'
    self.best_metric = self._prefixes[0] + best
    self.host_metrics = tuple(self.metrics(self._empty_scores(filled=True)))
    self._logits = jax.jit(
      lambda params, frozen, tokens, mask, states: exam.logits(
        params, config.model, tokens, mask, frozen.get('lm'), states=states
      )
    )

  def describe(self) -> str:
    d, model = self.data, self.config.model
    sizes = [
      f'{len(part):,} {name}'
      for name, part in zip(('training', 'held-out', 'test'), (d.train, d.valid, d.test))
      if part
    ]
    skipped = sum(part.skipped for part in (d.train, d.valid, d.test) if part)
    cut = np.mean(np.diff(d.train.corpus.offsets) == model.words)
    columns = ', '.join(
      f'{c.name} with {c.classes} {"labels, several per text" if c.multilabel else "classes"}' for c in model.columns
    )
    return (
      f'Data: {", ".join(sizes)} texts, {self.batches.steps_per_epoch:.1f} steps per epoch; {columns}\n'
      f'Vocabulary {self.reader.words.vocab_size:,}; {cut:.1%} of the training texts fill all {model.words} words or are cut to them'
      + (f'; {skipped:,} texts without a word are left out' if skipped else '')
    )

  def data_notes(self, step: int) -> dict[str, Any]:
    return {'texts': {'training': self.data.train.digest, 'held-out': self.data.valid.digest}}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    texts, now = notes.get('texts'), self.data_notes(step)['texts']
    before_texts = texts if isinstance(texts, dict) else {}
    said = [
      f'The {name} texts have changed since this run was saved. The run continues with the new ones.'
      for name, digest in now.items()
      if before_texts.get(name, digest) != digest
    ]
    return said + place_in_data.changed_batches(before.get('data', {}), self.config.data, step)

  def init_params(self, key: jax.Array) -> Any:
    return exam.init_params(self.config.model, key)

  def given_params(self) -> Any:
    if not self.config.model.train_lm or self.lm is None or self.config.start is not None:
      return None
    params = self.layout.create(lambda: self.init_params(jax.random.key(self.config.run.seed)))
    lm_params = jax.tree.map(lambda old, new: new.astype(old.dtype), params['lm'], self.lm.params)
    return params | {'lm': self.layout.place(lm_params)}

  def frozen(self) -> Any:
    return {'lm': self.lm.params} if self.config.model.has_frozen_lm and self.data.train.states is None else {}

  def loss(self, params: Any, batch: Any, context: Context) -> Any:
    model = self.config.model
    lm_params, states = (context.frozen or {}).get('lm'), batch.get('states')
    logits = exam.logits(params, model, batch['tokens'], batch['mask'], lm_params, context.key, states)
    return loss_terms(logits, batch, model, self._weights)

  def batch(self, step: int, rows: slice) -> Batch:
    return self.batches.batch(step, rows)

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    return ()  # `evaluate_on_host` computes the held-out loss with the other metrics, in one pass.

  def _empty_scores(self, filled: bool = False, thresholds: dict[str, np.ndarray] | None = None) -> list[Scores]:
    found = [
      Scores(column.classes, column.multilabel, (thresholds or {}).get(column.name))
      for column in self.config.model.columns
    ]
    for scores in found if filled else ():
      zero = np.zeros((1, scores.classes))
      scores.add(zero, zero > 0 if scores.multilabel else np.zeros(1, int))
    return found

  def metrics(self, scores: list[Scores]) -> dict[str, float]:
    """Returns the metrics of all columns; with several columns their names begin with the column's, and 'loss' is the sum."""
    found = {}
    for prefix, one in zip(self._prefixes, scores):
      found |= {prefix + name: value for name, value in one.metrics().items()}
    if len(scores) > 1:
      found['loss'] = sum(found[f'{prefix}loss'] for prefix in self._prefixes)
    return found

  def measure(
    self,
    params: Any,
    frozen: Any,
    texts: EncodedTexts,
    stop: Callable[[], bool] = lambda: False,
    thresholds: dict[str, np.ndarray] | None = None,
  ) -> list[Scores] | None:
    """Returns the scores of each column on some texts, or None if `stop` says so."""
    scores, model = self._empty_scores(thresholds=thresholds), self.config.model
    for batch in class_batches.in_order(texts, model, self.config.eval.batch_size):
      if stop():
        return None
      logits = np.asarray(self._logits(params, frozen, batch['tokens'], batch['mask'], batch.get('states')))
      real = batch['weight'] > 0
      for i, (one, part) in enumerate(zip(scores, exam.column_logits(model, logits))):
        one.add(part[real], batch[f'labels_{i}'][real])
    return scores

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    scores = self.measure(params, frozen, self.data.valid, stop)
    return None if scores is None else self.metrics(scores)

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    shown = ('loss', 'accuracy', 'macro_f1', 'micro_f1', 'micro_f1_best', 'p@1', 'kanshan')
    # Before thresholds are chosen, the F1 at 0.5 says little about many labels, and exact matches are rare.
    hidden = ('accuracy', 'micro_f1') if 'micro_f1_best' in metrics else ()
    wanted = [name for name in shown if name not in hidden]
    return {k: v for k, v in metrics.items() if k.rpartition('/')[2] in wanted}

  def save_assets(self, directory: Path) -> None:
    run_directory.save_once(directory / 'tokenizer', self.reader.save)

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    results.finish(self, directory, say)
    say(f'Checkpoints, metrics.jsonl, loss.png and TensorBoard events: {directory}')
    say(f'Classify with it: python -m decoders.classify {directory} --text "..." --explain')
