"""Losses of text classification as sums, one term for each label column.

  one label      sum_b w_y -log softmax(z_b)_y,                      weight sum_b w_y
  many labels    sum_bc y p_c softplus(-z_bc) + (1 - y) softplus(z_bc),   weight: number of texts

w are weights of the classes and p those of texts that have the label, 1 unless they are balanced. The second is a sum over the labels,
as in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.class_batches import EncodedTexts
from jaxlm.exam_config import Column, ExamConfig
from jaxlm.models import exam
from trainers.step import Term

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

LARGEST_WEIGHT = 100.0


def balanced_weights(counts: Int[np.ndarray, ' C'], texts: int, multilabel: bool) -> Float[np.ndarray, ' C']:
  """Returns the float32 weights of classes that `counts` of `texts` texts have.

  For one label: texts / (classes * count), so that every class has the same total weight. For many labels: (texts - count) / count, so
  that texts with a label weigh as much as those without it, at most 100.
  """
  counts = np.maximum(counts, 1)
  found = (texts - counts) / counts if multilabel else counts.sum() / (len(counts) * counts)
  return np.minimum(found, LARGEST_WEIGHT).astype(np.float32)


def class_weights(kind: str, texts: EncodedTexts, columns: tuple[Column, ...]) -> list[np.ndarray | None]:
  """Returns the weights of the classes of each column; None: all are 1. `kind` is ClassifyConfig.class_weights."""
  if kind == 'none':
    return [None] * len(columns)
  return [
    balanced_weights(texts.counts(i, column.classes), int(texts.known[i].sum()), column.multilabel)
    for i, column in enumerate(columns)
  ]


def one_label_loss(
  logits: Float[Array, 'B C'],
  labels: Int[Array, ' B'],
  weight: Float[Array, ' B'],
  class_weights: Float[Array, ' C'] | None = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (weighted sum of the negative log-likelihoods, sum of the weights); rows with a label of -1 have none."""
  known_B = jnp.where(labels >= 0, weight, 0.0)
  if class_weights is not None:
    known_B = known_B * jnp.asarray(class_weights)[jnp.maximum(labels, 0)]
  log_p_BC = jax.nn.log_softmax(logits.astype(jnp.float32))
  nll_B = -jnp.take_along_axis(log_p_BC, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
  return jnp.sum(known_B * nll_B), jnp.sum(known_B)


def many_labels_loss(
  logits: Float[Array, 'B C'],
  labels: Bool[Array, 'B C'],
  weight: Float[Array, ' B'],
  positive_weights: Float[Array, ' C'] | None = None,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (weighted sum of the binary cross-entropies over texts and labels, sum of the weights of the texts)."""
  logits = logits.astype(jnp.float32)
  there_BC = jax.nn.softplus(-logits)
  if positive_weights is not None:
    there_BC = there_BC * jnp.asarray(positive_weights).reshape(1, -1)
  nll_BC = jnp.where(labels, there_BC, jax.nn.softplus(logits))
  return jnp.sum(weight * jnp.sum(nll_BC, axis=1)), jnp.sum(weight)


def loss_terms(
  logits: Float[Array, 'B C'],
  batch: dict[str, Array],
  config: ExamConfig,
  weights: list[np.ndarray | None],
) -> dict[str, Term]:
  """Returns the term of each label column: 'loss' for a single column, NAME_loss for several.

  Args:
    logits: of the classes of all columns.
    batch: labels_i of each column and weight, see `jaxlm.data.class_batches`.
    config: of the model.
    weights: of the classes of each column, from `class_weights`.
  """
  terms = {}
  for i, (column, part_BC) in enumerate(zip(config.columns, exam.column_logits(config, logits))):
    loss = many_labels_loss if column.multilabel else one_label_loss
    name = f'{column.name}_loss' if len(config.columns) > 1 else 'loss'
    terms[name] = Term(*loss(part_BC, batch[f'labels_{i}'], batch['weight'], weights[i]))
  return terms
