"""Two kernels for sums of attention weights: over keys for each query (`row_totals`), over queries for each key (`column_sums`).

  S = cap(scale K Q^T) + bias - slope |i + offset - j|        offset = keys - queries: the last query is at the last key
  softmax   total = log sum_j exp(S)    columns = sum_i f_i exp(S - lse_i)
  sigmoid   total = sum_j sigmoid(S)    columns = sum_i f_i sigmoid(S)

Blocks of logits are Y keys by X queries in both kernels. What belongs to a query is then a row, which a TPU stores without
padding; a column of T numbers would take 128 times its size. Loop bounds skip blocks in which all keys are hidden. All keys of
a head, and for the columns all its queries, stay in VMEM on a TPU: T H 4 bytes in bfloat16 with double buffering.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from pallas_kernels import blocks
from pallas_kernels.arithmetic import HIDDEN, dot, softcapped

DEFAULT_BLOCKS = {'tpu': (256, 512), 'gpu': (64, 64), 'interpret': (128, 128)}  # (queries, keys), not tuned


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static arguments of a call, independent of shapes and platform."""

  operation: str
  causal: bool
  window: int | None
  scale: float
  softcap: float | None
  bias: float
  alibi: bool
  block_q: int | None = None
  block_k: int | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
  """The static arguments of the kernels."""

  spec: Spec
  before: int | None  # Number of keys that a query sees before its position; None: all.
  after: int | None  # Number of keys that a query sees after its position; None: all.
  keys: int  # Number of keys; the rest is padding.
  offset: int  # Position of query 0 among the keys.
  block_q: int
  block_k: int


def call(platform: str, spec: Spec, q, k, slopes_BN, interpret=False):
  """Returns the two passes over queries [B, T, N, H] and keys [B, S, K, H], as functions.

  rows() -> totals [B, N, T]: for softmax the log-sum-exp over visible keys (HIDDEN without any), for sigmoid the sum.
  columns(lse [B, N, T] or None, factors: tuple of F arrays [B, N, T]) -> F arrays [B, N, S].
  """
  (B, T, N, _), (S, K) = q.shape, k.shape[1:3]
  G, reach = N // K, None if spec.window is None else spec.window - 1
  default_q, default_k = DEFAULT_BLOCKS[platform]
  on_tpu = platform == 'tpu'
  block_q = blocks.size(spec.block_q or default_q, T, compiled_for_tpu=on_tpu)
  block_k = blocks.size(spec.block_k or default_k, S, compiled_for_tpu=on_tpu)
  rule = Rule(spec, reach, 0 if spec.causal else reach, S, S - T, block_q, block_k)
  pad = functools.partial(blocks.by_head, tpu=on_tpu, compiled_for_tpu=on_tpu)
  q_BNTH, k_BKSH = pad(q, block_q), pad(k, block_k)
  (padded_T, H), padded_S = q_BNTH.shape[2:], k_BKSH.shape[2]
  queries, keys = padded_T // block_q, padded_S // block_k
  query_block = pl.BlockSpec((None, None, block_q, H), lambda b, n, i: (b, n, i, 0))
  all_queries = pl.BlockSpec((None, None, padded_T, H), lambda b, n, j: (b, n, 0, 0))
  all_keys = pl.BlockSpec((None, None, padded_S, H), lambda b, n, i: (b, n // G, 0, 0))
  key_block = pl.BlockSpec((None, None, block_k, H), lambda b, n, j: (b, n // G, j, 0))
  row = lambda block: pl.BlockSpec((None, None, None, 1, block), lambda b, n, i: (b, n, i, 0, 0))
  rows = pl.BlockSpec((None, None, queries, 1, block_q), lambda b, n, j: (b, n, 0, 0, 0))
  run = functools.partial(_call, rule, platform, interpret, slopes_BN)

  def row_pass():
    out = (B, N, queries, 1, block_q), row(block_q)
    (total,) = run(row_totals, (B, N, queries), [(q_BNTH, query_block), (k_BKSH, all_keys)], [out])
    return total.reshape(B, N, padded_T)[:, :, :T]

  def column_pass(lse, factors):
    # Queries of padding have a huge lse and the factor 0, so that their weights are 0.
    stats = [(x, 0.0) for x in factors] if lse is None else [(lse, -HIDDEN), *((x, 0.0) for x in factors)]
    stats = [jnp.pad(x, ((0, 0), (0, 0), (0, padded_T - T)), constant_values=fill) for x, fill in stats]
    ins = [(q_BNTH, all_queries), (k_BKSH, key_block), *((x.reshape(B, N, queries, 1, block_q), rows) for x in stats)]
    outs = [((B, N, keys, 1, block_k), row(block_k))] * len(factors)
    sums = run(column_sums, (B, N, keys), ins, outs)
    return [x.reshape(B, N, padded_S)[:, :, :S] for x in sums]

  return row_pass, column_pass


def row_totals(slope_ref, q_ref, k_ref, total_ref, *, rule: Rule):
  """Computes the totals of one block of queries."""
  q_XH = q_ref[...]
  first_query = pl.program_id(2) * rule.block_q
  slope = slope_ref[pl.program_id(0), pl.program_id(1)]
  block = lambda j: _logits(k_ref[blocks.at(j, rule.block_k), :], q_XH, first_query, j * rule.block_k, slope, rule)

  def add_sigmoid(j, sum_1X):
    logits_YX, visible_YX = block(j)
    return sum_1X + jnp.sum(_weights(logits_YX, visible_YX, None), axis=0, keepdims=True)

  def add_softmax(j, carry):
    max_1X, sum_1X = carry
    logits_YX, visible_YX = block(j)
    highest_1X = jnp.maximum(max_1X, jnp.max(jnp.where(visible_YX, logits_YX, HIDDEN), axis=0, keepdims=True))
    w_YX = _weights(logits_YX, visible_YX, highest_1X)
    return highest_1X, sum_1X * jnp.exp(max_1X - highest_1X) + jnp.sum(w_YX, axis=0, keepdims=True)

  position = first_query + rule.offset
  low, high = blocks.within(
    position, rule.block_q, rule.before, rule.after, rule.block_k, k_ref.shape[0] // rule.block_k
  )
  zeros_1X = jnp.zeros((1, rule.block_q), jnp.float32)
  if rule.spec.operation == 'sigmoid':
    total_ref[...] = lax.fori_loop(low, high, add_sigmoid, zeros_1X)
    return
  max_1X, sum_1X = lax.fori_loop(low, high, add_softmax, (zeros_1X + HIDDEN, zeros_1X))
  empty_1X = sum_1X == 0.0
  total_ref[...] = jnp.where(empty_1X, HIDDEN, max_1X + jnp.log(jnp.where(empty_1X, 1.0, sum_1X)))


def column_sums(slope_ref, q_ref, k_ref, *refs, rule: Rule):
  """Computes the sums of one block of keys. refs: for softmax, lse as one row per block; F factors in the same form; F sums."""
  lse_ref, refs = (refs[0], refs[1:]) if rule.spec.operation == 'softmax' else (None, refs)
  factor_refs, sum_refs = refs[: len(refs) // 2], refs[len(refs) // 2 :]
  k_YH = k_ref[...]
  first_key = pl.program_id(2) * rule.block_k
  slope = slope_ref[pl.program_id(0), pl.program_id(1)]

  def add(i, sums):
    q_XH = q_ref[blocks.at(i, rule.block_q), :]
    logits_YX, visible_YX = _logits(k_YH, q_XH, i * rule.block_q, first_key, slope, rule)
    w_YX = _weights(logits_YX, visible_YX, None if lse_ref is None else lse_ref[i])
    return tuple(sum_YX + w_YX * ref[i] for sum_YX, ref in zip(sums, factor_refs))

  # Key j is seen by the queries at positions j - after .. j + before.
  first = first_key - rule.offset
  low, high = blocks.within(first, rule.block_k, rule.after, rule.before, rule.block_q, q_ref.shape[0] // rule.block_q)
  zeros_YX = jnp.zeros((rule.block_k, rule.block_q), jnp.float32)
  sums = lax.fori_loop(low, high, add, (zeros_YX,) * len(sum_refs))
  for ref, sum_YX in zip(sum_refs, sums):
    ref[...] = jnp.sum(sum_YX.T, axis=0, keepdims=True)  # Transposed first: a sum over the last axis would be a column.


def _logits(k_YH, q_XH, first_query, first_key, slope, rule: Rule):
  """Returns the logits [Y, X] and which of them are visible."""
  spec = rule.spec
  logits, _ = softcapped(spec.scale * dot(k_YH, q_XH, 1), spec.softcap)
  key = first_key + lax.broadcasted_iota(jnp.int32, logits.shape, 0)
  distance = first_query + rule.offset + lax.broadcasted_iota(jnp.int32, logits.shape, 1) - key
  logits = logits + spec.bias
  if spec.alibi:
    logits = logits - slope * jnp.abs(distance).astype(jnp.float32)
  visible = key < rule.keys
  if rule.before is not None:
    visible &= distance <= rule.before
  if rule.after is not None:
    visible &= distance >= -rule.after
  return logits, visible


def _weights(logits, visible, shift_1X):
  """Returns exp(logits - shift), or their sigmoid without a shift; 0 where they are not visible."""
  return jnp.where(visible, jax.nn.sigmoid(logits) if shift_1X is None else jnp.exp(logits - shift_1X), 0.0)


def _call(rule: Rule, platform: str, interpret, slopes_BN, kernel, grid, ins, outs):
  arrays, in_specs = zip(*ins)
  shapes, out_specs = zip(*outs)
  size = lambda spec, dtype: math.prod(d or 1 for d in spec.block_shape) * jnp.dtype(dtype).itemsize
  read_and_written = sum(size(spec, x.dtype) for x, spec in ins) + sum(size(spec, jnp.float32) for _, spec in outs)
  # Blocks are buffered twice, and a row of one block takes eight. Below 16 MiB the default is enough.
  vmem = 2 * read_and_written + 16 * 4 * rule.block_q * rule.block_k + 2**22
  options = {
    'tpu': lambda: pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=vmem if vmem > 2**24 else None
    ),
    'gpu': lambda: plgpu.CompilerParams(num_warps=4, num_stages=2),
    'interpret': lambda: None,
  }[platform]()
  in_smem = platform == 'tpu' or isinstance(interpret, pltpu.InterpretParams)
  slopes_spec = pl.BlockSpec(memory_space=pltpu.SMEM) if in_smem else pl.BlockSpec()
  return pl.pallas_call(
    functools.partial(kernel, rule=rule), grid=grid, in_specs=[slopes_spec, *in_specs], out_specs=list(out_specs),
    out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes], interpret=interpret,
    name=f'{rule.spec.operation}_{kernel.__name__}', compiler_params=options,
  )(slopes_BN, *arrays)  # fmt: skip
