"""Next-token cross-entropy, and a version that never holds the logits of a whole batch.

  loss_sum = sum_bt mask_bt (logsumexp_v z_btv - z_bt[target]),   weight = sum_bt mask_bt,   z = cap(h W)

With a vocabulary of 50k, the float32 logits of one batch are larger than the model. `chunked_cross_entropy` loops over slices
of the sequence, and computes the loss and both gradients of a slice from the same logits,

  dz = mask (softmax(z) - onehot(target)) cap'(h W),   dh = dz W^T,   dW = sum h^T dz,

so the product h W is not computed again in the backward pass, and only dh and dW are kept after their slice.
`token_nll` loops in the same way and returns the loss of each token.

Label smoothing e (https://arxiv.org/abs/1512.00567) gives every token of the vocabulary the same share of the target:

  -(1 - e) log p(target) - e / V sum_v log p(v)

as in PyTorch's `CrossEntropyLoss`. fairseq spreads e over all tokens but the target, so its e is this e times (V - 1) / V.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int, Num

# Every slice reads and writes the whole of dW, so a slice should have enough tokens to hide this cost.
SLICE_TOKENS = 256


def slice_logits() -> int:
  """Returns the number of logits to compute at once. Fewer are computed whole, more in slices of about this size.

  On an accelerator, a slice (256 MiB of float32) is large enough to keep the matrix unit busy while dW is read and written. On a
  CPU, a slice nearly fits the caches, which makes it faster than the whole (by a fifth for 1024 tokens and a vocabulary of 4096).
  """
  return 2**20 if jax.default_backend() == 'cpu' else 2**26


def _capped(raw, softcap: float | None):
  return raw if softcap is None else softcap * jnp.tanh(raw / softcap)


def _is_target(logits, targets):
  # A comparison instead of a gather: XLA fuses it, its gradient needs no scatter, and a sharded vocabulary stays sharded.
  return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]


def cross_entropy(
  logits: Float[Array, '*rows V'],
  targets: Int[Array, '*rows'],
  mask: Num[Array, '*rows'] | None = None,
  *,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (sum of the masked negative log-likelihoods, sum of the mask), both float32 scalars.

  Args:
    logits: any float dtype; the loss is computed in float32.
    targets: token ids; ignored where the mask is 0.
    mask: weight of each target; None: 1 for all. No gradient flows through it.
    label_smoothing: e of the module's docstring, in [0, 1).

  Raises:
    ValueError: a label smoothing outside [0, 1).
  """
  check_smoothing(label_smoothing)
  mask = jnp.ones(targets.shape, jnp.float32) if mask is None else jax.lax.stop_gradient(mask.astype(jnp.float32))
  return jnp.sum(_nll(logits, targets, label_smoothing) * mask), jnp.sum(mask)


def check_smoothing(label_smoothing: float) -> None:
  if not 0 <= label_smoothing < 1:
    raise ValueError(f'{label_smoothing=} must be at least 0 and less than 1.')


def _nll(logits, targets, label_smoothing=0.0):
  logits = logits.astype(jnp.float32)
  expected = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)
  if label_smoothing:
    expected = (1 - label_smoothing) * expected + label_smoothing * jnp.mean(logits, axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - expected


def capped_logits(hidden, output_matrix, softcap):
  """Returns float32 logits; the product is computed in hidden's dtype."""
  raw = jnp.matmul(hidden, output_matrix.astype(hidden.dtype), preferred_element_type=jnp.float32)
  return _capped(raw, softcap)


def slices(x_BT, steps: int):
  """Returns [B, T, ...] as [steps, B, C, ...], zero-padded. Slices are along T, so that rows stay on their devices."""
  B, T, *rest = x_BT.shape
  C = -(-T // steps)
  x_BT = jnp.pad(x_BT, [(0, 0), (0, steps * C - T)] + [(0, 0)] * len(rest))
  return x_BT.reshape(B, steps, C, *rest).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss_sum(hidden_BTD, output_DV, targets_BT, mask_BT, steps, softcap, smoothing):
  """Returns the loss without gradients, for evaluation: only a scalar is kept after a slice."""

  def one_slice(loss, xs):
    h_BCD, targets_BC, mask_BC = xs
    logits_BCV = capped_logits(h_BCD, output_DV, softcap)
    return loss + cross_entropy(logits_BCV, targets_BC, mask_BC, label_smoothing=smoothing)[0], None

  xs = tuple(slices(x, steps) for x in (hidden_BTD, targets_BT, mask_BT))
  return jax.lax.scan(one_slice, jnp.zeros((), jnp.float32), xs)[0]


def _loss_and_gradients(hidden_BTD, output_DV, targets_BT, mask_BT, steps, softcap, smoothing):
  B, T, D = hidden_BTD.shape
  w_DV = output_DV.astype(hidden_BTD.dtype)

  def one_slice(carry, xs):
    loss, dw_DV = carry
    h_BCD, targets_BC, mask_BC = xs
    logits_BCV = capped_logits(h_BCD, w_DV, softcap)
    log_z_BC1 = jax.nn.logsumexp(logits_BCV, axis=-1, keepdims=True)
    is_target_BCV = _is_target(logits_BCV, targets_BC)
    expected_BC = jnp.sum(jnp.where(is_target_BCV, logits_BCV, 0.0), axis=-1)
    share_BCV = is_target_BCV
    if smoothing:
      expected_BC = (1 - smoothing) * expected_BC + smoothing * jnp.mean(logits_BCV, axis=-1)
      share_BCV = (1 - smoothing) * is_target_BCV + smoothing / logits_BCV.shape[-1]
    loss = loss + jnp.sum((log_z_BC1[..., 0] - expected_BC) * mask_BC)
    dz_BCV = (jnp.exp(logits_BCV - log_z_BC1) - share_BCV) * mask_BC[..., None]
    if softcap is not None:
      dz_BCV = dz_BCV * (1.0 - jnp.square(logits_BCV / softcap))
    dz_BCV = dz_BCV.astype(h_BCD.dtype)
    dh_BCD = jnp.einsum('BCV,DV->BCD', dz_BCV, w_DV, preferred_element_type=jnp.float32).astype(h_BCD.dtype)
    dw_DV = dw_DV + jnp.einsum('BCD,BCV->DV', h_BCD, dz_BCV, preferred_element_type=jnp.float32)
    return (loss, dw_DV), dh_BCD

  xs = tuple(slices(x, steps) for x in (hidden_BTD, targets_BT, mask_BT))
  start = jnp.zeros((), jnp.float32), jnp.zeros(output_DV.shape, jnp.float32)
  (loss, dw_DV), dh = jax.lax.scan(one_slice, start, xs)
  dh_BTD = dh.swapaxes(0, 1).reshape(B, -1, D)[:, :T]
  return loss, (dh_BTD, dw_DV.astype(output_DV.dtype))


def _backward(steps, softcap, smoothing, gradients, g):
  # The loss is a scalar, so its cotangent only scales what the forward pass already computed.
  dh_BTD, dw_DV = gradients
  return (dh_BTD * g).astype(dh_BTD.dtype), (dw_DV * g).astype(dw_DV.dtype), None, None


_loss_sum.defvjp(_loss_and_gradients, _backward)


def chunked_cross_entropy(
  hidden: Float[Array, 'B T D'],
  output_matrix: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  mask: Num[Array, 'B T'] | None = None,
  *,
  chunk: int | None = None,
  softcap: float | None = None,
  label_smoothing: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns `cross_entropy(cap(hidden @ output_matrix), targets, mask)`, with little memory; value and gradients are equal.

  Args:
    hidden: states after the final norm; products are computed in their dtype, sums in float32.
    output_matrix: usually float32 parameters; cast to hidden's dtype.
    targets: token ids.
    mask: weight of each target; None: 1 for all. No gradient flows through it.
    chunk: about how many tokens (B times a slice of T) are computed at once; 0: all; None: chosen by size.
    softcap: logits become softcap * tanh(logits / softcap).
    label_smoothing: e of the module's docstring, in [0, 1).

  Raises:
    ValueError: shapes that do not fit together, a negative chunk, or a label smoothing outside [0, 1).
  """
  check_smoothing(label_smoothing)
  steps = slice_count(hidden, output_matrix, targets, chunk)
  if steps is None:
    return cross_entropy(capped_logits(hidden, output_matrix, softcap), targets, mask, label_smoothing=label_smoothing)
  mask = jnp.ones(targets.shape, jnp.float32) if mask is None else jax.lax.stop_gradient(mask.astype(jnp.float32))
  return _loss_sum(hidden, output_matrix, targets, mask, steps, softcap, label_smoothing), jnp.sum(mask)


def token_nll(
  hidden: Float[Array, 'B T D'],
  output_matrix: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  chunk: int | None = None,
  softcap: float | None = None,
) -> Float[Array, 'B T']:
  """Returns -log p of each target in float32, with little memory. It is for scoring: its gradient would keep all logits.

  Arguments and errors are those of `chunked_cross_entropy`.
  """
  steps = slice_count(hidden, output_matrix, targets, chunk)
  one_slice = lambda xs: _nll(capped_logits(xs[0], output_matrix, softcap), xs[1])
  if steps is None:
    return one_slice((hidden, targets))
  B, T = targets.shape
  nll = jax.lax.map(one_slice, (slices(hidden, steps), slices(targets, steps)))
  return nll.swapaxes(0, 1).reshape(B, -1)[:, :T]


def slice_count(hidden, output_matrix, targets, chunk: int | None) -> int | None:
  """Returns the number of slices of T, or None for no slicing. Raises as `chunked_cross_entropy` does."""
  if hidden.shape[:2] != targets.shape or hidden.shape[-1] != output_matrix.shape[0]:
    raise ValueError(f'hidden {hidden.shape} fits neither targets {targets.shape} nor matrix {output_matrix.shape}.')
  if chunk is not None and chunk < 0:
    raise ValueError(f'{chunk=} must be a number of tokens, 0 (all at once) or None (by size).')
  (B, T), V = targets.shape, output_matrix.shape[1]
  if chunk is None:
    chunk = 0 if B * T * V <= slice_logits() else max(SLICE_TOKENS, slice_logits() // V)
  return None if chunk == 0 or chunk >= B * T else -(-T // max(1, chunk // B))
