"""The task of a recommender: predict the identifiers of the items of a history from the items before them.

loss = -sum_bt mask_bt log p(targets_bt | tokens_b,<=t)
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data import history_batches
from jaxlm.data.history_batches import HistoryBatches
from jaxlm.data.interactions import VALID
from jaxlm.errors import CheckpointError
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import init_params
from trainers import place_in_data, run_directory
from trainers.next_token import next_token_loss
from trainers.recommend import lists, results
from trainers.recommend.config import TargetConfig
from trainers.recommend.ids import Data
from trainers.step import Context
from trainers.task import Batch, Task

TRAINER = 'recommend'
RISING = ('recall', 'ndcg')


class Recommendation(Task):
  """What targets and drafts share. `config` is a TargetConfig or a DraftConfig whose model fits the catalogue."""

  trainer = TRAINER

  def __init__(self, config: Any, data: Data, rows: history_batches.Rows):
    self.config, self.data = config, data
    self.batch_size = config.data.batch_size
    self.batches = HistoryBatches(rows, data.catalogue, self.batch_size, config.data.predict, config.data.seed)
    # Validation: the item after the training items, as the lists are measured.
    known, truth = data.histories.examples(VALID)
    ends = [np.append(history, next_item) for history, next_item in zip(known, truth)]
    held_out = [items[-data.catalogue.history - 1 :] for items in ends]
    self.held_out = None
    if held_out:
      valid_rows = history_batches.Rows(tuple(held_out), (True,) * len(held_out))
      self.held_out = HistoryBatches(valid_rows, data.catalogue, self.batch_size, 'last')
    self.users = lists.users_of(data.histories, VALID, config.eval.users)
    self.trie = data.catalogue.trie()

  def describe(self) -> str:
    d, b = self.data, self.batches
    parts = [int((d.histories.parts == part).sum()) for part in range(3)]
    return (
      f'Data: {len(d.histories):,} users, {parts[0]:,} training, {parts[1]:,} validation and {parts[2]:,} test interactions; '
      f'{len(b.rows):,} rows, {b.steps_per_epoch:.1f} steps per epoch\n'
      f'Items: {len(d.catalogue):,}, identifiers of {d.catalogue.depth} tokens, vocabulary {d.catalogue.vocab_size:,}, '
      f'digest {d.catalogue.digest}'
    )

  def data_notes(self, step: int) -> dict[str, Any]:
    return {'identifiers': self.data.catalogue.digest, 'rows': self.batches.rows.digest}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    now, said = self.data_notes(step), []
    if notes.get('identifiers', now['identifiers']) != now['identifiers']:
      raise CheckpointError(
        f'This run was begun with the identifiers {notes["identifiers"]}, and --ids has {now["identifiers"]}: its parameters mean nothing '
        'for them. Pass the --ids of before, or another --run.directory.'
      )
    if notes.get('rows', now['rows']) != now['rows']:
      said.append('The histories have changed since this run was saved. The run continues with the new ones.')
    return said + place_in_data.changed_batches(before.get('data', {}), self.config.data, step)

  def init_params(self, key: jax.Array) -> Any:
    return init_params(self.config.model, key)

  def batch(self, step: int, rows: slice) -> Batch:
    return self.batches.batch(step, rows)

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    return () if self.held_out is None else self.held_out.in_order(self.batch_size, rows)

  def model(self, params: Any) -> LanguageModel:
    return LanguageModel(self.config.model, params, self.data.catalogue)

  def begin(self, start: str, directory: Path) -> Iterable[str]:
    return ()  # The identifiers have been compared. Catalogues of the same items may differ in popularity.

  def save_assets(self, directory: Path) -> None:
    run_directory.save_once(directory / 'tokenizer', self.data.catalogue.save)


class NextItem(Recommendation):
  """Training of a target."""

  loss_label = 'loss (nats per code)'

  def __init__(self, config: TargetConfig, data: Data):
    rows = history_batches.windows(history_batches.training_sequences(data.histories), data.catalogue.history)
    super().__init__(config, data, _ends(rows, data) if config.data.predict == 'last' else rows)
    self.host_metrics = lists.metric_names(config.eval.k) if len(self.users[0]) else ()
    self.higher_is_better = tuple(name for name in self.host_metrics if name.startswith(RISING))
    best = f'ndcg@{max(lists.lengths(min(config.eval.k, 10)))}'
    self.best_metric = best if self.host_metrics else 'loss'

  def loss(self, params: Any, batch: Any, context: Context) -> Any:
    return next_token_loss(params, _without_rows(batch), self.config.model, context.key)

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    return self.measure(self.model(params), *self.users, stop)

  def measure(self, lm, known, truth, stop=lambda: False) -> dict[str, float] | None:
    """Returns the metrics of a model for some users, or None if `stop` says so."""
    e = self.config.eval
    found = lists.recommend(lm, self.data.catalogue, self.trie, known, e.k, e.batch_size, stop=stop)
    return None if found is None else lists.metrics(found[0], truth, e.k)

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    wanted = ('loss', 'recall@10', 'ndcg@10') if 'ndcg@10' in metrics else ('loss', *self.host_metrics[-2:])
    return {name: metrics[name] for name in wanted if name in metrics}

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    results.of_target(self, directory, say)
    say(f'Checkpoints, metrics.jsonl, loss.png and TensorBoard events: {directory}')
    say(f'Recommend with it: python -m decoders.recommend {directory} --history {results.example(self.data)}')
    say(f'Train a draft for it: python -m trainers.recommend draft --target {directory}')


def _ends(rows: history_batches.Rows, data: Data) -> history_batches.Rows:
  """Returns the last row of each user's history alone."""
  last = [i for i in range(len(rows)) if i == 0 or rows.whole[i - 1]]
  return history_batches.Rows(tuple(rows.items[i] for i in last), tuple(rows.whole[i] for i in last))


def _without_rows(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {name: batch[name] for name in ('tokens', 'targets', 'mask')}
