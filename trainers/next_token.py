"""The next-token loss of a decoder-only language model on a batch, for trainers, benchmarks and research code."""

from typing import Any

import jax

from jaxlm import caches, losses
from jaxlm.config import ModelConfig
from jaxlm.models import functions


def next_token_loss(
  params: Any,
  batch: dict[str, jax.Array],
  config: ModelConfig,
  key: jax.Array | None = None,
  *,
  label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns (sum of the negative log-likelihoods of batch['targets'], sum of batch['mask']).

  Args:
    batch: tokens, targets int32 [B, T] and mask float32 [B, T]; also segments and positions int32 [B, T] if documents share a
      row and must not attend to each other.
    key: random key for dropout (`config.dropout`); None, for evaluation: no dropout.
    label_smoothing: see `jaxlm.losses.cross_entropy`.

  Raises:
    ValueError: the model is not causal, so tokens would see their targets.
  """
  config.check_causal('Predicting the next token')
  cache = caches.Sequence(batch.get('segments'))
  hidden_BTD, _ = functions.hidden(params, config, batch['tokens'], batch.get('positions'), cache, key=key)
  matrix_DV = functions.output_matrix(params, config)
  return losses.chunked_cross_entropy(
    hidden_BTD,
    matrix_DV,
    batch['targets'],
    batch['mask'],
    softcap=config.logit_softcap,
    label_smoothing=label_smoothing,
  )
