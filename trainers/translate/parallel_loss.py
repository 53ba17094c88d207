"""The losses of models that predict all target tokens at once (kinds nat and cmlm), as named sums.

  ce       -sum_t log p_t(y_t | masks)
  ctc      -log of the sum over alignments a that collapse to the target of prod_i p_i(a_i)
  length   -log p(n | source), summed over sentences and divided by the number of target tokens

The loss ce of a model of kind cmlm is on the masked tokens alone, which are 1 ... n - 1 of n at random places
(https://arxiv.org/abs/1904.09324). All other losses mask the whole target; axe, oaxe and ngram-oaxe are in `order_loss`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from decoders.translation import mask_predict
from decoders.translation.collapse import repeats, within
from jaxlm import losses
from jaxlm.models import nat, seq2seq
from trainers.step import Context, Term
from trainers.translate.config import TranslateConfig
from trainers.translate.order_loss import order_terms
from trainers.translate.task import token_loss

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Int


def random_masks(key: Array, lengths: Int[Array, ' B'], positions: int) -> Bool[Array, 'B T']:
  """Returns which tokens of each target are masked: 1 ... n - 1 of n, each number equally likely, at random places; 1 of 1."""
  number_key, place_key = jax.random.split(key)
  number_B = jax.random.randint(number_key, lengths.shape, 1, jnp.maximum(lengths, 2), jnp.int32)
  noise_BT = jax.random.uniform(place_key, (*lengths.shape, positions), jnp.float32)
  return mask_predict.remask(noise_BT, lengths, number_B)


def parallel_terms(
  params: Any, batch: dict[str, jax.Array], config: TranslateConfig, context: Context
) -> dict[str, Term]:
  """Returns the terms of the loss; in evaluation (no key) also metrics that are not trained on.

  Args:
    batch: source int32 and source_mask bool [B, S]; targets int32 and mask float32 [B, T].
  """
  c, key = config.model, context.key
  is_training = key is not None
  # Every evaluation masks the same tokens.
  *keys, mask_key = jax.random.split(key, 3) if is_training else (None, None, jax.random.key(0))
  targets_BT, weights_BT = batch['targets'], batch['mask']
  source_lengths_B = jnp.sum(batch['source_mask'], axis=1, dtype=jnp.int32)
  n_B = jnp.sum(weights_BT > 0, axis=1, dtype=jnp.int32)
  states_BSD, length_log_p_BN = nat.encode(params, c, batch['source'], source_lengths_B, keys[0])
  memory = seq2seq.memory(params, c, states_BSD, source_lengths_B)
  if c.nat.upsampling:
    lengths_B, positions = c.nat.upsampling * source_lengths_B, c.nat.upsampling * batch['source'].shape[1]
  else:
    lengths_B, positions = n_B, targets_BT.shape[1]
  if c.kind == 'cmlm' and config.loss == 'ce':
    masked_BT = random_masks(mask_key, n_B, positions)
    inputs, weights_BT = jnp.where(masked_BT, c.mask_id, targets_BT), weights_BT * masked_BT
  else:
    inputs = nat.unknown_targets(c, states_BSD, source_lengths_B, lengths_B, positions)
  hidden_BTD = nat.hidden(params, c, inputs, lengths_B, memory, keys[1])
  if config.loss == 'ctc':
    terms = ctc_terms(seq2seq.logits(params, c, hidden_BTD), lengths_B, targets_BT, weights_BT, c.mask_id)
    weights_BT = (within(lengths_B, positions) & (n_B > 0)[:, None]).astype(jnp.float32)
  elif config.loss == 'ce':
    smoothing = config.label_smoothing if is_training else 0.0
    terms = {'ce': Term(*token_loss(params, c, hidden_BTD, targets_BT, weights_BT, smoothing))}
  else:
    terms = order_terms(params, config, hidden_BTD, targets_BT, weights_BT, context.step, is_training=is_training)
  if length_log_p_BN is not None:
    terms['length'] = length_term(length_log_p_BN, n_B)
  if is_training:
    return terms
  _, log_p_BT = mask_predict.predict(params, c, hidden_BTD)
  terms['max_probability'] = Term(jnp.sum(jnp.exp(log_p_BT) * weights_BT), jnp.sum(weights_BT), None)
  if length_log_p_BN is not None:
    right_B = (jnp.argmax(length_log_p_BN, axis=1) == n_B) & (n_B > 0)
    terms['length_accuracy'] = Term(jnp.sum(right_B, dtype=jnp.float32), jnp.sum(n_B > 0, dtype=jnp.float32), None)
  return terms


def ctc_terms(logits_BTV, lengths_B, targets_BT, mask_BT, blank: int) -> dict[str, Term]:
  """Returns the loss of the sentences that have an alignment, and the share of those that have none, which is not trained on.

  A target of n tokens, r of which are equal to the token before them, needs n + r of a sentence's `lengths_B` positions.
  """
  n_B = jnp.sum(mask_BT > 0, axis=1, dtype=jnp.int32)
  fits_B = n_B + repeats(targets_BT, n_B).sum(axis=1) <= lengths_B
  prediction_mask = within(lengths_B, logits_BTV.shape[1])
  found = losses.ctc(logits_BTV, targets_BT, mask_BT * fits_B[:, None], blank_id=blank, prediction_mask=prediction_mask)
  too_long, sentences = jnp.sum(~fits_B & (n_B > 0)), jnp.sum(n_B > 0)
  return {'ctc': Term(*found), 'too_long': Term(too_long.astype(jnp.float32), sentences.astype(jnp.float32), None)}


def length_term(length_log_p_BN, n_B) -> Term:
  """Returns -log p(n | source), summed over the sentences that have a target, and the number of target tokens."""
  nll_B = -jnp.take_along_axis(length_log_p_BN, jnp.maximum(n_B, 1)[:, None], axis=1)[:, 0]
  return Term(jnp.sum(jnp.where(n_B > 0, nll_B, 0.0)), jnp.sum(n_B).astype(jnp.float32))
