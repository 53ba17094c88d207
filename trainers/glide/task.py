"""The task of a GliDe draft: predict the next token from the text and from the target's keys and values before each block.

  loss = (1 - w) CE + w D,   CE = -sum_bt mask_bt log q(targets_bt | ...),   D = sum_bt mask_bt divergence(p_bt, q_bt)

q is the draft's distribution, p that of the frozen target, which runs within the step: its parameters are the step's frozen arrays.
"""

from collections.abc import Callable, Iterable
import dataclasses
import math
from pathlib import Path
import shlex
from typing import Any

import jax
import numpy as np

from jaxlm import losses
from jaxlm.config import ModelConfig
from jaxlm.glide_config import GlideConfig
from jaxlm.glide_model import GlideDraft
from jaxlm.io import digest
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions, glide, glide_training
from trainers import place_in_data, run_directory
from trainers.glide.config import DistillConfig, GlideTrainConfig
from trainers.glide.texts import Texts, with_phases
from trainers.step import Context, Term
from trainers.task import Batch, Task


def draft_terms(
  params: Any,
  target_params: Any,
  batch: dict[str, jax.Array],
  config: GlideConfig,
  distill: DistillConfig = DistillConfig(),
  *,
  compare: bool = False,
) -> dict[str, Term]:
  """Returns the terms of the loss that have a weight: 'ce', and with distillation 'kl' or 'tv'. No gradient flows into the target's
  parameters.

  Args:
    params: parameters of the draft.
    target_params: parameters of `config.target.model`.
    batch: tokens, targets int32 and mask float32 [B, T]; phase int32 [B], the place of each row's first block; and, if they are kept,
      the target's outputs, see `trainers.glide.outputs`. Otherwise the target runs.
    config: of the draft.
    distill: how much is learned from the target's distribution.
    compare: adds terms that are not trained on: 'agreement' and 'overlap', see `losses.agreement`, and 'ce' if it is not there.
  """
  target: ModelConfig = config.target.model
  needs_distribution = compare or distill.weight > 0
  reads = target_hidden_BTE = None
  if 'states' in batch:
    layers = {i: (batch[f'keys-{i}'], batch[f'values-{i}']) for i in config.target_layers}
    reads, target_hidden_BTE = glide_training.kept_reads(target, layers), batch['states'].astype(target.dtype)
  elif config.cross or needs_distribution:
    reads, target_hidden_BTE = glide_training.target_reads(target, target_params, batch['tokens'], config.target_layers)
  # Rows are padded on the right, and no token sees later ones, so padding needs no mask.
  hidden_BTD = glide_training.training_states(
    config, params, batch['tokens'], reads if config.cross else None, batch['phase'], target_params=target_params
  )
  matrix_DV = glide.output_matrix(config, params, target_params)
  targets, mask, softcap = batch['targets'], batch['mask'], config.logit_softcap
  terms = {}
  if compare or distill.weight < 1:
    # Tokens that the draft cannot predict are no targets.
    predicted = mask * (targets < config.num_predicted) if config.vocabulary else mask
    ce = losses.chunked_cross_entropy(hidden_BTD, matrix_DV, targets, predicted, softcap=softcap)
    terms['ce'] = Term(*ce, 1 - distill.weight if distill.weight < 1 else None)
  if not needs_distribution:
    return terms
  pair = hidden_BTD, matrix_DV, target_hidden_BTE, functions.output_matrix(target_params, target)
  softcaps = dict(softcap=softcap, target_softcap=target.logit_softcap)
  if distill.weight:
    # All tokens before the last target, those of the prompt too.
    where = jax.lax.cummax(mask, axis=1, reverse=True) if distill.prompts else mask
    found = losses.divergence(*pair, where, distill.divergence, temperature=distill.temperature, **softcaps)
    terms[distill.divergence] = Term(*found, distill.weight)
  if compare:
    same, overlap, weight = losses.agreement(*pair, mask, **softcaps)
    terms |= {'agreement': Term(same, weight, None), 'overlap': Term(overlap, weight, None)}
  return terms


class DraftTraining(Task):
  """Training of a draft for the target `lm`. `config` is a GlideTrainConfig whose model has this target."""

  trainer = 'glide'
  higher_is_better = ('accepted_length', 'acceptance', 'agreement', 'overlap')

  def __init__(self, config: GlideTrainConfig, lm: LanguageModel, texts: Texts):
    self.config, self.lm, self.prompts = config, lm, texts.prompts
    self.batches, self.held_out, self.outputs = texts.batches, texts.held_out, texts.outputs
    self.batch_size = config.data.batch_size
    names = glide.cross_names(config.model)
    self.learning_rates = tuple((f'{name}/o/kernel', config.cross_learning_rate) for name in names)
    self.host_metrics = ('accepted_length', 'acceptance') if self.prompts else ()
    self.best_metric = 'accepted_length' if self.prompts else 'loss'
    self._target = {'name': config.target, 'digest': digest.of_tree(lm.params)}

  def describe(self) -> str:
    size, b = sum(math.prod(x.shape) for x in jax.tree.leaves(self.lm.params)), self.batches
    kind = 'that the target wrote' if self.config.self_generate else 'of text'
    return (
      f'Target: {self.config.target}, {size:,} parameters, {self.lm.config.dtype}, frozen\n'
      f'Data: {len(b.corpus):,} training tokens {kind}, {b.steps_per_epoch:.1f} steps per epoch; {len(self.held_out.corpus):,} held-out '
      f'tokens; vocabulary {self.lm.config.vocab_size:,}'
    )

  def data_notes(self, step: int) -> dict[str, Any]:
    rows = {'rows': self.batches.rows_before(step), 'length': self.config.data.length}
    return {**rows, 'texts': self._texts(), 'target': self._target}

  def _texts(self) -> dict[str, dict[str, Any]]:
    return place_in_data.describe(self.batches, {'forward': self.held_out})

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    self.batches = place_in_data.resumed(self.batches, step, notes, before)
    said = place_in_data.changes(notes, self._texts())
    target = notes.get('target')
    if isinstance(target, dict) and target.get('digest') != self._target['digest']:
      said.append(
        f"The target's numbers differ from those of {target.get('name')} when this run was saved: from now on the draft learns from "
        f'{self.config.target}.'
      )
    return said

  def init_params(self, key: jax.Array) -> Any:
    return glide.init_params(self.config.model, key)

  def frozen(self) -> Any:
    return {'target': self.lm.params}

  def loss(self, params: Any, batch: Any, context: Context) -> Any:
    c = self.config
    return draft_terms(params, context.frozen['target'], batch, c.model, c.distill, compare=context.key is None)

  def batch(self, step: int, rows: slice) -> Batch:
    first = self.batches.rows_before(step)
    numbers = np.arange(first, first + self.batch_size)[rows]
    return self._inputs(self.batches.batch(step, rows), numbers, 'training', self.batches.window_indices(step, rows))

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    for i in range(len(self.held_out)):
      numbers = i * self.batch_size + np.arange(self.batch_size)[rows]
      yield self._inputs(self.held_out.batch(i, rows), numbers, 'held-out', numbers.tolist())

  def _inputs(self, batch: Batch, numbers: np.ndarray, part: str, indices: list[int]) -> Batch:
    # A row is one text, so the causal mask is enough.
    batch = {name: batch[name] for name in ('tokens', 'targets', 'mask')}
    if part in self.outputs:
      batch |= self.outputs[part].rows(indices)
    return with_phases(batch, numbers, self.config.model.block, self.config.data.seed)

  def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
    found = super().eval_metrics(sums)
    return found | {'perplexity': math.exp(min(found['ce'], 100.0))}

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    if not self.prompts:
      return {}
    import decoders

    if stop():
      return None
    lm = dataclasses.replace(self.lm, params=frozen['target'])
    draft = GlideDraft(self.config.model, params, self.lm.tokenizer)
    # A chain without the guard: what is measured is the draft, whether it is worth its time or not. Texts do not end early, so that
    # all of them count equally.
    glide_decoding = decoders.glide.GlideDecoding(max_draft=self.config.model.block, bins=(1,), guard=False)
    out = decoders.glide.generate(
      lm, draft, self.prompts, max_new_tokens=self.config.eval.new_tokens, glide=glide_decoding, eos_id=None
    )
    return {'accepted_length': out.stats['tokens_per_round'], 'acceptance': out.stats['acceptance']}

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    shown = ('loss', 'ce', 'kl', 'tv', 'agreement', 'overlap', 'accepted_length')
    return {name: metrics[name] for name in shown if name in metrics}

  def save_assets(self, directory: Path) -> None:
    run_directory.save_once(directory / 'tokenizer', self.lm.tokenizer.save)

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    say(f'Checkpoints, metrics.jsonl, loss.png and TensorBoard events: {directory}')
    names = shlex.quote(str(self.config.target)), shlex.quote(str(directory))
    say(f'Draft with it: python -m decoders.generate {names[0]} --decoder glide --draft {names[1]} --prompt "The "')
