"""What comes after the last step: the best parameters are selected, thresholds are chosen, and the test texts are measured.

Selection and thresholds use the held-out texts only. RUN/classification.json holds the metrics; the selected parameters lie in
RUN/average, from where `jaxlm.load` takes them.
"""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import jax

from jaxlm.data.text_reader import TextReader
from jaxlm.io import checkpoint
from jaxlm.io.atomic import write_atomically
from trainers import selection

RESULTS = 'classification.json'


def finish(task: Any, directory: Path, say: Callable[[str], None]) -> None:
  """Selects, chooses thresholds, measures, and writes the results, unless they are written already."""
  last = checkpoint.steps(directory / 'checkpoints')[-1]
  step = selection.selected_step(task, directory, last=task.config.eval.select == 'last')
  path, facts = (
    directory / RESULTS,
    {'last_step': last, 'selected_step': step, 'thresholds': task.config.eval.thresholds},
  )
  if jax.process_count() > 1:
    say('The best parameters are selected and measured when the same command is started on one host.')
    return
  if not selection.measured(path, facts):
    if not task.config.run.average_last:
      selection.select(directory, step, last)
    params = checkpoint.load_run(directory, 'float32')[1]
    write_atomically(path, json.dumps(facts | _measure(task, params, directory), indent=2) + '\n')
  for name, found in json.loads(path.read_text(encoding='utf-8'))['metrics'].items():
    shown = ', '.join(f'{k} {v:.4g}' for k, v in task.headline(found).items())
    say(f'{name} texts, parameters of step {step}: {shown}')


def _measure(task: Any, params: Any, directory: Path) -> dict[str, Any]:
  """Returns the metrics of the held-out and the test texts, after the thresholds are chosen and saved."""
  frozen = task.frozen()
  scores = task.measure(params, frozen, task.data.valid)
  each = task.config.eval.thresholds == 'each'
  thresholds = {
    column.name: one.best_thresholds(each=each)
    for column, one in zip(task.config.model.columns, scores)
    if column.multilabel
  }
  if thresholds:
    TextReader.save_thresholds(directory / 'tokenizer', thresholds)
  found = {}
  for name, texts in (('held-out', task.data.valid), ('test', task.data.test)):
    if texts is not None:
      measured = task.metrics(task.measure(params, frozen, texts, thresholds=thresholds))
      # The best F1 of any threshold would be chosen on the texts that it measures.
      found[name] = {k: v for k, v in measured.items() if not k.endswith('micro_f1_best')}
  return {'metrics': found}
