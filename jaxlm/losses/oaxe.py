"""Order-agnostic cross-entropy, OaXE (Du, Tu, Jiang 2021, https://arxiv.org/abs/2106.05093), for non-autoregressive models.

  loss = min over permutations o of  sum_i C_i,o(i),   C_ij = -log p_i(y_j)

The n positions of a sentence are matched with its n tokens, EOS included, at the least cost. The matching sees values only; the
gradient is that of cross-entropy with the permuted target. With truncation, tokens whose matched probability is below pi cost
nothing, because a model cannot commit to one order as long as it must also pay for the others:

  loss = (1 - e) sum_i C_i,o(i) [C_i,o(i) <= -log pi]  +  e sum_i mean_i

where e is the label smoothing and mean_i the mean of -log p_i over the vocabulary. Truncated tokens count in the weight. The
released code's margin is -log2(pi), though its costs are in nats: its pi = 0.15 drops tokens with p < 0.065, not p < 0.15.

Loss and weight, summed over a corpus and divided, are the normalised corpus-level multimodality (Sun & Yang 2020): with
`cross_entropy` for the reference's order, with `oaxe` for the order that the model likes best.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxlm.losses.cross_entropy import check_smoothing
from jaxlm.losses.position_costs import PositionCosts, chunked_position_costs, position_costs
from pallas_kernels import linear_assignment

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int, Num

BASES = ('e', '2')
SHAPES = ('exponential', 'linear', 'step')


def oaxe(
  logits: Float[Array, 'B T V'],
  targets: Int[Array, 'B T'],
  mask: Num[Array, 'B T'] | None = None,
  *,
  truncation: float | None = None,
  truncation_base: str = 'e',
  pin_eos: bool = False,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (loss of the module's docstring, summed over sentences; number of targets), both float32 scalars.

  Args:
    logits: any float dtype, one position for each target; the loss is computed in float32.
    targets: token ids; ignored where the mask is 0.
    mask: 1 for the first n targets of a row, which are its sentence, and 0 for padding; None: 1 for all.
    truncation: pi, in (0, 1); None: nothing is truncated.
    truncation_base: 'e': the margin is -log pi; '2': -log2 pi, as in the released code.
    pin_eos: keep the last token of each sentence, EOS, at its position.
    label_smoothing: e, in [0, 1). It is not truncated.

  Raises:
    ValueError: there are not as many positions as targets, or an option is out of its range.
  """
  costs = position_costs(logits, targets)
  return _oaxe(costs, mask, truncation, truncation_base, pin_eos, label_smoothing)


def chunked_oaxe(
  hidden: Float[Array, 'B T D'],
  output_matrix: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  mask: Num[Array, 'B T'] | None = None,
  *,
  vocab_chunk: int | None = None,
  softcap: float | None = None,
  truncation: float | None = None,
  truncation_base: str = 'e',
  pin_eos: bool = False,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns `oaxe(cap(hidden @ output_matrix), targets, mask, ...)`, with little memory.

  Arguments and errors are those of `chunked_position_costs` and `oaxe`.
  """
  costs = chunked_position_costs(hidden, output_matrix, targets, vocab_chunk=vocab_chunk, softcap=softcap)
  return _oaxe(costs, mask, truncation, truncation_base, pin_eos, label_smoothing)


def _oaxe(costs: PositionCosts, mask, truncation, truncation_base, pin_eos, label_smoothing):
  check_smoothing(label_smoothing)
  margin, mask = truncation_margin(truncation, truncation_base), target_mask(costs, mask)
  columns = linear_assignment(costs.nll, sizes(mask, pin_eos))
  nll_BT = matched(costs.nll, columns)
  nll = jnp.sum(jnp.where(mask > 0, kept(nll_BT, nll_BT, margin), 0.0))
  return smoothed(nll, costs, mask, label_smoothing), jnp.sum(mask)


def target_mask(costs: PositionCosts, mask):
  ones = jnp.ones(costs.mean_nll.shape, jnp.float32)
  return ones if mask is None else jax.lax.stop_gradient((mask != 0).astype(jnp.float32))


def sizes(mask_BT, pin_eos: bool):
  """Returns the number of tokens of each sentence that may move, int32."""
  n_B = jnp.sum(mask_BT, axis=1).astype(jnp.int32)
  return jnp.maximum(n_B - 1, 0) if pin_eos else n_B


def matched(nll_BTT, columns_BT):
  """Returns the cost of each position for the target at its column."""
  return jnp.take_along_axis(nll_BTT, columns_BT[..., None], axis=2)[..., 0]


def kept(nll, judged, margin: float):
  """Returns the costs, 0 where `judged` is above the margin. NaN is not above it, so that it shows in the loss."""
  return jnp.where(jax.lax.stop_gradient(judged) > margin, 0.0, nll)


def smoothed(nll_sum, costs: PositionCosts, mask_BT, label_smoothing: float):
  if not label_smoothing:
    return nll_sum
  return (1 - label_smoothing) * nll_sum + label_smoothing * jnp.sum(jnp.where(mask_BT > 0, costs.mean_nll, 0.0))


def truncation_margin(truncation: float | None, base: str = 'e') -> float:
  """Returns the largest cost, in nats, that is not truncated: -log(pi) in the given base, or inf without truncation.

  Raises:
    ValueError: pi outside (0, 1), or an unknown base.
  """
  if base not in BASES:
    raise ValueError(f'truncation_base={base!r} is not one of {", ".join(BASES)}.')
  if truncation is None:
    return math.inf
  if not 0 < truncation < 1:
    raise ValueError(f'{truncation=} must be a probability within (0, 1); None turns truncation off.')
  return -math.log2(truncation) if base == '2' else -math.log(truncation)


def joint_weight(step, total: int, c: float = 1.01, lam: float = 0.5, shape: str = 'exponential') -> Float[Array, '']:
  """Returns the weight w of cross-entropy in the loss w CE + (1 - w) OaXE at a step; it is 0 from lam * total steps on.

    exponential  max(0, 1 - c ** (step - lam total))
    linear       max(0, 1 - step / (lam total))
    step         1 before lam total

  Args:
    step: number of updates done so far; may be traced.
    total: number of updates of the whole training.
    c: base of the exponential shape, more than 1; the weight falls within about log(10) / log(c) updates.
    lam: share of the training that uses cross-entropy, in (0, 1].
    shape: 'exponential', 'linear' or 'step'.

  Raises:
    ValueError: an option out of its range.
  """
  if shape not in SHAPES:
    raise ValueError(f'{shape=} is not one of {", ".join(SHAPES)}.')
  if not (c > 1 and 0 < lam <= 1 and total > 0):
    raise ValueError(f'{c=}, {lam=}, {total=}: expected c > 1, lam within (0, 1] and total > 0.')
  left = lam * total - jnp.asarray(step, jnp.float32)
  if shape == 'step':
    return (left > 0).astype(jnp.float32)
  weight = left / (lam * total) if shape == 'linear' else -jnp.expm1(-math.log(c) * left)
  return jnp.maximum(weight, 0.0)
