"""What comes after the last step: the best parameters are selected, and measured on the test interactions of all users.

RUN/recommendation.json holds the metrics. The selection uses the validation interactions only.
"""

from collections.abc import Callable
import json
from pathlib import Path
import shlex
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.data.interactions import TEST
from jaxlm.io import checkpoint
from jaxlm.io.atomic import write_atomically
from trainers import selection
from trainers.recommend import lists
from trainers.recommend.config import RESULTS
from trainers.recommend.ids import Data


def of_target(task: Any, directory: Path, say: Callable[[str], None]) -> None:
  """Selects, measures and prints Recall and NDCG, beside those of popular items and of a table of pairs of items."""

  def measure(params):
    known, truth = lists.users_of(task.data.histories, TEST, None)
    found = {'model': task.measure(task.model(params), known, truth)} if len(known) else {}
    return {'users': len(known), **lists.baselines(task.data.histories, TEST, task.config.eval.k), **found}

  found = _measured(task, directory, measure, say)
  if found is None or 'model' not in found:
    return
  names = list(found['model'])
  say(f'Test, {found["users"]:,} users:')
  say('  '.join([' ' * 10, *(f'{name:>9}' for name in names)]))
  for name in ('popularity', 'bigram', 'model'):
    say('  '.join([f'{name:<10}', *(f'{found[name][metric]:9.4f}' for metric in names)]))


def of_draft(task: Any, directory: Path, say: Callable[[str], None]) -> None:
  """Selects, measures and prints the mean number of accepted steps with strict and relaxed verification."""

  def measure(params):
    known, _ = lists.users_of(task.data.histories, TEST, None)
    target = jax.tree.map(jnp.asarray, jax.device_get(task.lm.params))  # On the device of `params`.
    rules = ('strict', 'relaxed')
    accepted = lambda rule: task.accepted(params, target, known, verify=rule).get('accept_steps', 0.0)
    return {'users': len(known), **{rule: accepted(rule) for rule in rules}}

  found = _measured(task, directory, measure, say)
  if found is None or not found['users']:
    return
  depth = task.data.catalogue.depth
  each = ', '.join(
    f'{rule}: {found[rule]:.2f} accepted steps, {depth - found[rule]:.2f} target calls instead of {depth}'
    for rule in ('strict', 'relaxed')
  )
  say(f'Test, {found["users"]:,} users, K={task.config.eval.k}, N={task.config.eval.beam}: {each}')


def _measured(task: Any, directory: Path, measure: Callable, say: Callable[[str], None]) -> dict[str, Any] | None:
  """Returns the metrics of the selected parameters; they are measured once."""
  if jax.process_count() > 1:
    say('The best parameters are selected and measured when the same command is started on one host.')
    return None
  last = checkpoint.steps(directory / 'checkpoints')[-1]
  step = selection.selected_step(task, directory)
  path, facts = directory / RESULTS, {'last_step': last, 'selected_step': step}
  if not selection.measured(path, facts):
    if not task.config.run.average_last:
      selection.select(directory, step, last)
    params = checkpoint.load_run(directory, 'float32')[1]
    write_atomically(path, json.dumps(facts | {'metrics': measure(params)}, indent=2) + '\n')
  say(f'Parameters of step {step}, the best on the validation items:')
  return json.loads(path.read_text(encoding='utf-8'))['metrics']


def example(data: Data) -> str:
  """Returns two items of somebody's history as arguments of a command."""
  ids = [data.catalogue.item_ids[i] for i in data.histories.of(0, 0)[:2]]
  return ' '.join(map(shlex.quote, ids))
