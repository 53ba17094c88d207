"""OaXE between phrases (Du, Tu, Wang, Jiang 2022, https://arxiv.org/abs/2210.03999): the order within n-grams is kept.

  W_ij = sum_{k < n} C_i+k,j+k      cost of n positions from i on for the n-gram from target j on

The abstract of the paper says no more than this, so there are two readings. `window` matches all overlapping windows of positions
with all n-grams, m = N - n + 1 each for a sentence of N tokens,

  loss = sum_i sum_k C_i+k,s(i)+k / cov(i + k),   s = argmin over permutations of sum_i W_i,s(i)

where cov(p) = min(p + 1, n, N - p, m) is the number of windows over position p. A position may then get up to n different targets,
and windows across the seam of two phrases have no n-gram of their own: truncation drops them. `block` cuts positions and targets
into blocks of n on the same grid, matches the blocks, leaves the fewer than n tokens before and after them in place, and takes the
best of the n offsets of the grid: a permutation of the tokens.

With n = 1 both are OaXE, and with n >= N both are cross-entropy. OaXE <= block <= cross-entropy always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxlm.losses.cross_entropy import check_smoothing
from jaxlm.losses.oaxe import kept, matched, sizes, smoothed, target_mask, truncation_margin
from jaxlm.losses.position_costs import PositionCosts, chunked_position_costs, position_costs
from pallas_kernels import linear_assignment

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int, Num

MODES = ('window', 'block')
UNITS = ('window', 'token')


def ngram_oaxe(
  logits: Float[Array, 'B T V'],
  targets: Int[Array, 'B T'],
  mask: Num[Array, 'B T'] | None = None,
  *,
  n: int = 2,
  mode: str = 'window',
  trunc_unit: str = 'window',
  truncation: float | None = None,
  truncation_base: str = 'e',
  pin_eos: bool = False,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (loss of the module's docstring, summed over sentences; number of targets), both float32 scalars.

  Args:
    n: length of the n-grams, at least 1.
    mode: 'window' or 'block'.
    trunc_unit: what truncation drops: 'window': all tokens of a window or block whose mean cost is above the margin; 'token': single
      tokens.
    logits, targets, mask, truncation, truncation_base, pin_eos, label_smoothing: see `oaxe`.

  Raises:
    ValueError: there are not as many positions as targets, or an option is out of its range.
  """
  costs = position_costs(logits, targets)
  return _ngram_oaxe(costs, mask, n, mode, trunc_unit, truncation, truncation_base, pin_eos, label_smoothing)


def chunked_ngram_oaxe(
  hidden: Float[Array, 'B T D'],
  output_matrix: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  mask: Num[Array, 'B T'] | None = None,
  *,
  vocab_chunk: int | None = None,
  softcap: float | None = None,
  n: int = 2,
  mode: str = 'window',
  trunc_unit: str = 'window',
  truncation: float | None = None,
  truncation_base: str = 'e',
  pin_eos: bool = False,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns `ngram_oaxe(cap(hidden @ output_matrix), targets, mask, ...)`, with little memory.

  Arguments and errors are those of `chunked_position_costs` and `ngram_oaxe`.
  """
  costs = chunked_position_costs(hidden, output_matrix, targets, vocab_chunk=vocab_chunk, softcap=softcap)
  return _ngram_oaxe(costs, mask, n, mode, trunc_unit, truncation, truncation_base, pin_eos, label_smoothing)


def _check(n: int, mode: str, trunc_unit: str) -> None:
  if n < 1:
    raise ValueError(f'{n=} must be at least 1.')
  if mode not in MODES:
    raise ValueError(f'{mode=} is not one of {", ".join(MODES)}.')
  if trunc_unit not in UNITS:
    raise ValueError(f'{trunc_unit=} is not one of {", ".join(UNITS)}.')


def _ngram_oaxe(costs: PositionCosts, mask, n, mode, unit, truncation, truncation_base, pin_eos, label_smoothing):
  _check(n, mode, unit)
  check_smoothing(label_smoothing)
  margin = truncation_margin(truncation, truncation_base)
  mask_BT = target_mask(costs, mask)
  N_B = sizes(mask_BT, pin_eos)
  loss_of = _window_nll if mode == 'window' else _block_nll
  nll = loss_of(costs.nll, mask_BT, N_B, min(n, mask_BT.shape[1]), unit, margin)
  return smoothed(nll, costs, mask_BT, label_smoothing), jnp.sum(mask_BT)


def _diagonals(x_BTT, n: int):
  """Returns [n, B, T, T]: entry (k, i, j) is x_i+k,j+k, and 0 beyond the end."""
  T = x_BTT.shape[1]
  padded = jnp.pad(x_BTT, ((0, 0), (0, n - 1), (0, n - 1)))
  return jnp.stack([padded[:, k : k + T, k : k + T] for k in range(n)])


def _window_nll(nll_BTT, mask_BT, N_B, n: int, unit: str, margin: float):
  B, T, _ = nll_BTT.shape
  diagonals = _diagonals(nll_BTT, n)
  # A sentence shorter than n has one window, itself.
  n_B = jnp.minimum(n, N_B)
  m_B = jnp.where(N_B > 0, N_B - n_B + 1, 0)
  inside = jnp.arange(n)[:, None] < n_B[None]  # [n, B]
  windows_BTT = jnp.sum(jnp.where(inside[:, :, None, None], diagonals, 0.0), axis=0)
  s_BT = linear_assignment(windows_BTT, m_B)

  position = jnp.arange(n)[:, None, None] + jnp.arange(T)[None, None]  # i + k, [n, 1, T]
  of_sentence = lambda x_B: x_B[None, :, None]
  used = inside[:, :, None] & (jnp.arange(T)[None, None] < of_sentence(m_B))  # [n, B, T]
  cov = jnp.minimum(
    jnp.minimum(position + 1, of_sentence(n_B)), jnp.minimum(of_sentence(N_B) - position, of_sentence(m_B))
  )
  nll_kBT = jnp.where(used, jnp.stack([matched(x, s_BT) for x in diagonals]), 0.0)
  judged = nll_kBT
  if unit == 'window':
    judged = jnp.broadcast_to(jnp.sum(nll_kBT, axis=0) / jnp.maximum(n_B, 1)[:, None], nll_kBT.shape)
  moved = jnp.sum(kept(nll_kBT, judged, margin) / jnp.where(used, cov, 1))

  # A pinned EOS is in no window.
  in_place_BT = jnp.diagonal(nll_BTT, axis1=1, axis2=2)
  is_pinned_BT = (mask_BT > 0) & (jnp.arange(T)[None] >= N_B[:, None])
  return moved + jnp.sum(jnp.where(is_pinned_BT, kept(in_place_BT, in_place_BT, margin), 0.0))


def _block_nll(nll_BTT, mask_BT, N_B, n: int, unit: str, margin: float):
  B, T, _ = nll_BTT.shape
  windows_BTT = jnp.sum(_diagonals(jax.lax.stop_gradient(nll_BTT), n), axis=0)
  candidates, blocks = [], []
  p_1T = jnp.arange(T)[None]
  for r in range(n):
    q_B = jnp.maximum(N_B - r, 0) // n
    o_BQ = linear_assignment(windows_BTT[:, r::n, r::n], q_B)
    block_1T = (p_1T - r) // n
    moves_BT = (p_1T >= r) & (block_1T < q_B[:, None])
    of_block_BT = jnp.take_along_axis(o_BQ, jnp.broadcast_to(jnp.clip(block_1T, 0, o_BQ.shape[1] - 1), (B, T)), axis=1)
    candidates.append(jnp.where(moves_BT, r + n * of_block_BT + (p_1T - r) % n, p_1T))
    blocks.append(jnp.where(moves_BT, block_1T, T + p_1T))  # A token in place is a block of its own.
  columns, blocks = jnp.stack(candidates), jnp.stack(blocks)  # [n, B, T]
  totals = jnp.stack([jnp.sum(jnp.where(mask_BT > 0, matched(nll_BTT, c), 0.0), axis=1) for c in columns])
  best_1B1 = jnp.argmin(jax.lax.stop_gradient(totals), axis=0)[None, :, None]
  columns_BT, block_BT = (jnp.take_along_axis(x, best_1B1, axis=0)[0] for x in (columns, blocks))

  nll_BT = matched(nll_BTT, columns_BT)
  judged_BT = nll_BT
  if unit == 'window':
    same_BTT = block_BT[:, :, None] == block_BT[:, None, :]
    judged_BT = jnp.sum(jnp.where(same_BTT, nll_BT[:, None, :], 0.0), axis=2) / jnp.sum(same_BTT, axis=2)
  return jnp.sum(jnp.where(mask_BT > 0, kept(nll_BT, judged_BT, margin), 0.0))
