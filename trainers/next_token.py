"""The loss of a decoder-only language model on a batch, alone: research code and benchmarks need no more than this."""

from typing import Any

import jax

from jaxlm import caches, losses
from jaxlm.config import ModelConfig
from jaxlm.models.transformer import Transformer


def next_token_loss(
  params: Any, batch: dict[str, jax.Array], config: ModelConfig, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Returns (sum of the negative log-likelihoods of batch['targets'], sum of batch['mask']).

  batch: tokens, targets int32 [B, T] and mask float32 [B, T]; segments and positions int32 [B, T] where documents that
  share a row must not see each other. label_smoothing: see `jaxlm.losses.cross_entropy`.
  """
  model, variables = Transformer(config), {'params': params}
  cache = caches.Sequence(batch.get('segments'))
  hidden_BTD, _ = model.apply(variables, batch['tokens'], batch.get('positions'), cache, method='hidden')
  matrix_DV = model.apply(variables, method='output_matrix')
  return losses.chunked_cross_entropy(
    hidden_BTD,
    matrix_DV,
    batch['targets'],
    batch['mask'],
    softcap=config.logit_softcap,
    label_smoothing=label_smoothing,
  )
