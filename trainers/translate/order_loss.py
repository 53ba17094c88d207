"""Losses that do not hold a model to one order of the target tokens, as named sums; all target tokens are unknown to the decoder.

  axe, oaxe, ngram-oaxe    see `jaxlm.losses`
  with joint annealing     w ce + (1 - w) oaxe,  where w goes from 1 to 0 in the first part of the run

Evaluation does without smoothing and truncation, which would lower the loss for nothing, and reports the cross-entropy in place beside it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import losses
from jaxlm.losses.oaxe import matched, sizes
from jaxlm.losses.position_costs import PositionCosts, chunked_position_costs, position_costs
from jaxlm.models import seq2seq
from pallas_kernels import linear_assignment
from trainers.step import Term
from trainers.translate.config import TranslateConfig
from trainers.translate.task import token_loss


def order_terms(
  params: Any, config: TranslateConfig, hidden_BTD, targets_BT, mask_BT, step, *, is_training: bool
) -> dict[str, Term]:
  """Returns the terms of the loss that `config.loss` names, which is the first, and in evaluation metrics of the best order."""
  c, o = config.model, config.oaxe
  smoothing = config.label_smoothing if is_training else 0.0
  in_place = token_loss(params, c, hidden_BTD, targets_BT, mask_BT, smoothing)
  metrics = {}
  if not is_training and config.loss != 'axe':
    nll_BT, metrics = best_order(_costs(params, config, hidden_BTD, targets_BT), mask_BT, config)
  if not is_training and config.loss == 'oaxe':  # Without smoothing and truncation, this is the loss.
    found = jnp.sum(jnp.where(mask_BT > 0, nll_BT, 0.0)), jnp.sum(mask_BT)
  else:
    found = _order_loss(params, config, hidden_BTD, targets_BT, mask_BT, smoothing, is_training)
  if o.joint != 'none':
    w = losses.joint_weight(step, config.run.steps, o.joint_base, o.joint_until, o.joint)
    return {config.loss: Term(*found, 1 - w), 'ce': Term(*in_place, w), **metrics}
  terms = {config.loss: Term(*found)}
  return terms if is_training else {**terms, 'ce': Term(*in_place, None), **metrics}


def _order_loss(params, config: TranslateConfig, hidden_BTD, targets_BT, mask_BT, smoothing, is_training):
  """Returns (sum, weight) of the loss that `config.loss` names."""
  c, o = config.model, config.oaxe
  if config.loss == 'axe':
    logits_BTV = seq2seq.logits(params, c, hidden_BTD)
    options = {'epsilon_id': c.mask_id, 'delta': o.skip_penalty, 'prediction_mask': mask_BT}
    return losses.axe(logits_BTV, targets_BT, mask_BT, **options)
  options = {'pin_eos': o.pin_eos, 'label_smoothing': smoothing}
  if is_training and o.pi:
    options |= {'truncation': o.pi, 'truncation_base': o.base}
  whole, chunked = losses.oaxe, losses.chunked_oaxe
  if config.loss == 'ngram-oaxe':
    whole, chunked = losses.ngram_oaxe, losses.chunked_ngram_oaxe
    options |= {'n': o.ngram, 'mode': o.ngram_mode, 'trunc_unit': o.truncated}
  if c.output_bias:
    return whole(seq2seq.logits(params, c, hidden_BTD), targets_BT, mask_BT, **options)
  return chunked(hidden_BTD, seq2seq.output_matrix(params, c), targets_BT, mask_BT, **options)


def _costs(params, config: TranslateConfig, hidden_BTD, targets_BT) -> PositionCosts:
  c = config.model
  if c.output_bias:
    return position_costs(seq2seq.logits(params, c, hidden_BTD), targets_BT)
  return chunked_position_costs(hidden_BTD, seq2seq.output_matrix(params, c), targets_BT)


def best_order(costs: PositionCosts, mask_BT, config: TranslateConfig) -> tuple[jax.Array, dict[str, Term]]:
  """Returns (the cost of each position in the best order o of single tokens, metrics of o, which are not trained on).

  displacement: mean |o(i) - i|. truncated: share of the tokens that truncation would drop, if there is one.
  """
  o, weight = config.oaxe, jnp.sum(mask_BT)
  columns_BT = linear_assignment(costs.nll, sizes(mask_BT, o.pin_eos))
  nll_BT = matched(costs.nll, columns_BT)
  moved_BT = jnp.abs(columns_BT - jnp.arange(columns_BT.shape[1])[None])
  found = {'displacement': Term(jnp.sum(moved_BT * mask_BT), weight, None)}
  if o.pi:
    is_dropped_BT = nll_BT > losses.truncation_margin(o.pi, o.base)
    found['truncated'] = Term(jnp.sum(is_dropped_BT * mask_BT), weight, None)
  return nll_BT, found
