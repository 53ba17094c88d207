"""The task of a draft: learn the next item from the data, and align with the target on the target's own beams.

  loss = (1 - alpha) CE + alpha A

A row holds a history, the next item, and K beams of the target after this history. One pass of the draft, and one of the frozen target,
reads all of it: the beams lie beside the row as a tree, and each of their tokens sees the history and its own beam.
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import caches, losses
from jaxlm.config import ModelConfig
from jaxlm.data import history_batches
from jaxlm.data.history_batches import Rows
from jaxlm.io import digest
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions
from trainers.recommend import lists, results
from trainers.recommend.config import ON_BEAMS, DraftConfig, LossConfig
from trainers.recommend.ids import Data
from trainers.recommend.target_task import Recommendation
from trainers.step import Context, Term
from trainers.task import Batch


def rows_of(config: DraftConfig, data: Data) -> Rows:
  """Returns the rows that a draft learns: beginnings of the training histories, each with the item after it."""
  sequences = history_batches.training_sequences(data.histories)
  return history_batches.prefixes(sequences, data.catalogue.history, config.beams.examples, config.beams.seed)


def with_beams(batch: dict[str, jax.Array], depth: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (tokens, positions [B, S], the mask [B, S, S]) of rows and the beams beside them, S = T + K (L - 1).

  The last token of a beam is only predicted, so it is not read.
  """
  tokens_BT, beams_BKL, prompt_B = batch['tokens'], jnp.maximum(batch['beams'], 0), batch['prompt']
  (B, T), K, inner = tokens_BT.shape, beams_BKL.shape[1], depth - 1
  tokens = jnp.concatenate([tokens_BT, beams_BKL[:, :, :inner].reshape(B, K * inner)], axis=1)
  index_T = jnp.arange(T)
  step_N = jnp.tile(jnp.arange(inner), K)
  beam_N = jnp.repeat(jnp.arange(K), inner)
  positions = jnp.concatenate(
    [jnp.broadcast_to(index_T[None], (B, T)), prompt_B[:, None] + step_N[None]], axis=1
  ).astype(jnp.int32)
  row_TT = index_T[:, None] >= index_T[None]
  beside_NN = (beam_N[:, None] == beam_N[None]) & (step_N[:, None] >= step_N[None])
  history_BNT = jnp.broadcast_to((index_T[None] < prompt_B[:, None])[:, None], (B, len(step_N), T))
  whole = lambda x: jnp.broadcast_to(x[None], (B, *x.shape))
  above = jnp.concatenate([whole(row_TT), jnp.zeros((B, T, len(step_N)), bool)], axis=2)
  below = jnp.concatenate([history_BNT, whole(beside_NN)], axis=2)
  return tokens, positions, jnp.concatenate([above, below], axis=1)


def beam_states(hidden_BSD: jax.Array, prompt_B: jax.Array, length: int, beams: int, depth: int) -> jax.Array:
  """Returns the states [B, K, L, D] from which each token of each beam is predicted; `length` is T."""
  B, _, D = hidden_BSD.shape
  first_B1D = jnp.take_along_axis(hidden_BSD, (prompt_B - 1)[:, None, None], axis=1)
  first = jnp.broadcast_to(first_B1D[:, None], (B, beams, 1, D))
  return jnp.concatenate([first, hidden_BSD[:, length:].reshape(B, beams, depth - 1, D)], axis=2)


def read(
  params: Any, config: ModelConfig, batch: dict[str, jax.Array], depth: int, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Returns the states (of the row [B, T, D]; of the beams [B, K, L, D], None if the batch has none)."""
  if 'beams' not in batch:
    return functions.hidden(params, config, batch['tokens'], key=key)[0], None
  tokens, positions, mask = with_beams(batch, depth)
  hidden, _ = functions.hidden(params, config, tokens, positions, caches.Masked(mask), key=key)
  T, K = batch['tokens'].shape[1], batch['beams'].shape[1]
  return hidden[:, :T], beam_states(hidden, batch['prompt'], T, K, depth)


def draft_terms(
  params: Any,
  target_params: Any,
  batch: dict[str, jax.Array],
  config: ModelConfig,
  target: ModelConfig,
  legal: Any,
  loss: LossConfig,
  key: jax.Array | None = None,
) -> dict[str, Term]:
  """Returns the terms of the loss: 'ce', and the alignment under the name of the loss unless that is sft.

  Args:
    params: parameters of the draft, whose config is `config`.
    target_params: parameters of the target, whose config is `target`; no gradient flows into them.
    batch: see `jaxlm.data.history_batches`; for losses on beams also beams int32 [B, K, L], -1 where there are fewer.
    legal: [L, V] bool, the tokens that are codes of each level.
    loss: which alignment, and its share.
  """
  depth = len(legal)
  row_BTD, beams_BKLD = read(params, config, batch, depth, key)
  matrix = functions.output_matrix(params, config)
  ce = losses.chunked_cross_entropy(row_BTD, matrix, batch['targets'], batch['mask'], softcap=config.logit_softcap)
  alpha = 0.0 if loss.name == 'sft' else loss.alpha
  terms = {'ce': Term(*ce, 1 - alpha if alpha < 1 else None)}
  if loss.name == 'sft' or (loss.name in ON_BEAMS and 'beams' not in batch):
    return terms
  factor = alpha if alpha > 0 else None
  theirs = lambda: read(jax.lax.stop_gradient(target_params), target.replace(remat='none'), batch, depth)
  logits = lambda x, of, c: functions.logits(of, c, x)
  if loss.name in ('word-kd', 'tvd-kd'):
    align = losses.word_kd if loss.name == 'word-kd' else losses.tvd_kd
    pair = logits(row_BTD, params, config), logits(theirs()[0], target_params, target)
    return terms | {loss.name: Term(*align(*pair, batch['mask']), factor)}
  q_BKLV = logits(beams_BKLD, params, config)
  mask_BKL = (batch['beams'] >= 0) * batch['weight'][:, None, None]
  if loss.name in ('seq-kd', 'seq-kd-released'):
    labels_BKL = jnp.maximum(batch['beams'], 0)
    if loss.name == 'seq-kd-released':  # The authors' code takes the first label of every beam from the data.
      next_B1 = jnp.take_along_axis(batch['targets'], batch['prompt'][:, None] - 1, axis=1)
      labels_BKL = labels_BKL.at[:, :, 0].set(next_B1)
    found = losses.seq_kd(q_BKLV, labels_BKL, mask_BKL)
    return terms | {loss.name: Term(*found, factor)}
  p_BKLV = logits(theirs()[1], target_params, target)
  kind = {'atspeed-s': 'strict', 'atspeed-s-clean': 'strict-clean', 'atspeed-r': 'relaxed'}[loss.name]
  found = losses.topk_alignment(
    q_BKLV, p_BKLV, jnp.asarray(legal)[None, None], mask_BKL, kind, top_k=loss.top_k, tau=loss.tau
  )
  return terms | {loss.name: Term(*found, factor)}


class Draft(Recommendation):
  """Training of a draft for the target `lm`; `beams` [rows, K, L] of the rows, or None if the loss needs none."""

  unit = 'tokens'
  loss_label = 'loss'

  def __init__(self, config: DraftConfig, lm: LanguageModel, data: Data, rows: Rows, beams: np.ndarray | None):
    super().__init__(config, data, rows)
    self.lm, self.beams = lm, beams
    self._target = {'name': config.target, 'digest': digest.of_tree(lm.params)}
    there = bool(len(self.users[0]))
    self.host_metrics = ('accept_steps',) if there else ()
    self.higher_is_better = ('accept_steps',)
    self.best_metric = 'accept_steps' if there else 'loss'

  def describe(self) -> str:
    size = sum(x.size for x in jax.tree.leaves(self.lm.params))
    return f'Target: {self.config.target}, {size:,} parameters, {self.lm.config.dtype}, frozen\n{super().describe()}'

  def data_notes(self, step: int) -> dict[str, Any]:
    return super().data_notes(step) | {'target': self._target}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    said, target = super().resume(step, notes, before), notes.get('target')
    if isinstance(target, dict) and target.get('digest') != self._target['digest']:
      said.append(
        f"The target's numbers differ from those of {target.get('name')} when this run was saved: from now on the draft learns from "
        f'{self.config.target}.'
      )
    return said

  def frozen(self) -> Any:
    return {'target': self.lm.params}

  def loss(self, params: Any, batch: Any, context: Context) -> Any:
    c = self.config
    legal = self.data.catalogue.level_mask
    return draft_terms(
      params, context.frozen['target'], batch, c.model, self.lm.config, legal, c.loss, context.key
    )  # fmt: skip

  def batch(self, step: int, rows: slice) -> Batch:
    found = super().batch(step, rows)
    return found if self.beams is None else found | {'beams': self.beams[found['row']]}

  def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
    # Held-out rows have no beams of the target, so their loss is the cross-entropy.
    found = super().eval_metrics(sums)
    return found | {'loss': found['ce']}

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    return self.accepted(params, frozen['target'], self.users[0], stop)

  def accepted(self, params: Any, target_params: Any, known, stop=lambda: False, **settings) -> dict[str, float] | None:
    """Returns the mean number of accepted steps of speculative beam search for some users, or None if `stop` says so."""
    if not len(known):
      return {}
    e = self.config.eval
    target = dataclasses.replace(self.lm, params=target_params)
    found = lists.recommend(
      target, self.data.catalogue, self.trie, known, e.k, e.batch_size, draft=self.model(params), stop=stop, beam=e.beam,
      gamma=e.gamma, **settings,
    )  # fmt: skip
    return None if found is None else {'accept_steps': float(np.mean(found[1]))}

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ('loss', self.config.loss.name, 'accept_steps') if name in metrics}

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    results.of_draft(self, directory, say)
    say(f'Checkpoints, metrics.jsonl, loss.png and TensorBoard events: {directory}')
    example = results.example(self.data)
    say(f'Recommend with it: python -m decoders.recommend {self.config.target} --draft {directory} --history {example}')
