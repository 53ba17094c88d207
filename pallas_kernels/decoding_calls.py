"""Calls of the decode attention kernel: blocks, the plan of each row, and compiler parameters.

Array names carry shapes: B batch, R = G T queries of a key head, S slots, K key heads, H head dim, P bytes of a token's codes.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from pallas_kernels import decoding_kernels as kernels

FASTEST = {'tpu': 'xla', 'cuda': 'xla', 'rocm': 'xla', 'cpu': 'xla'}
"""Platform -> how a call without an `implementation` runs: 'pallas' or 'xla'. The kernel has been compiled for TPUs, and not yet
timed on one; `python -m benchmarks.accelerator --parts decode-attention` tells which entry is right."""
LANES = 128
BLOCK_BYTES = 2**21
"""Bytes of the keys and values of one step, all heads together, and of its logits. Reading them takes longer than starting a step."""


class Codes(NamedTuple):
  """Quantised keys or values, x = code scale + minimum. A byte holds 8 / bits codes; P = H bits / 8.

  Keys share a scale per channel over a group of tokens, values per token over a group of channels
  (KIVI, https://arxiv.org/abs/2402.02750). Byte j of a token holds the codes of channels j, j + P, ..., from its lowest bits on.
  """

  codes: jax.Array  # uint8; keys [B, K, S, P]; values [B, K, P, S]
  scale: jax.Array  # keys [B, K, S / group, H]; values [B, K, H / group, S]
  minimum: jax.Array  # as scale


class Stored(NamedTuple):
  """The arrays of a call, queries by key head."""

  q: jax.Array  # [B, K, R, H]
  keys: jax.Array | Codes  # [rows, K, S, H]
  values: jax.Array | Codes  # [rows, K, S, H]
  positions: jax.Array  # [B, R] int32, of the queries
  key_positions: jax.Array | None  # [B, K or 1, S] int32; None: a slot is its position
  lengths: jax.Array  # [B] int32: slots in use
  rows: jax.Array | None  # [B] int32: the row of keys and values that each row of the batch reads; None: its own
  slopes: jax.Array | None  # [K, R] float32


def slots_of(keys: jax.Array | Codes) -> int:
  return (keys.codes if isinstance(keys, Codes) else keys).shape[2]


def cannot(q, keys, values) -> str | None:
  """Returns why the kernel does not support a call, or None if it does. q: [B, T, N, H]."""
  H, quantised = q.shape[3], isinstance(keys, Codes)
  dtypes = [q.dtype] if quantised else [q.dtype, keys.dtype, values.dtype]
  if wrong := [x.name for x in dtypes if x not in (jnp.float32, jnp.bfloat16)]:
    return f'it is for float32 and bfloat16, not {wrong[0]}'
  if quantised:
    P, groups = values.codes.shape[2], values.scale.shape[2]
    group = slots_of(keys) // keys.scale.shape[2]
    if P % 8 or H // groups % 8:
      return f'{P} bytes of codes and groups of {H // groups} channels are not multiples of 8'
    if group & (group - 1):
      return f'groups of {group} tokens are no power of two'
  return None


def stored(rule: kernels.Rule, call: Stored, block: int | None, splits: int, interpret) -> tuple[jax.Array, ...]:
  """Returns sums over the stored tokens, float32: out [splits, B, K, R, H], and for softmax top and total [splits, B, K, R, 1]."""
  (B, K, R, H), S = call.q.shape, slots_of(call.keys)
  quantised = isinstance(call.keys, Codes)
  keys_last = (call.keys.codes if quantised else call.keys).shape[3] % LANES != 0
  values_last = quantised or H % LANES != 0
  group = S // call.keys.scale.shape[2] if quantised else None
  block = block or _block(call, quantised)
  # Blocks of the last axis are whole lanes, or the whole axis.
  block = S if block >= S else max(LANES, block // LANES * LANES)
  if group is not None and LANES * group % block:
    block = S if S <= LANES * group else LANES * group
  layout = kernels.Layout(S, block, keys_last, values_last, call.key_positions is not None, group, H % LANES != 0)
  splits = min(splits, pl.cdiv(S, block))
  plan_4B = _plan(rule, call, block)
  # Queries are padded to whole tiles; the results of the padding are cut off.
  more = -R % (16 if call.q.dtype.itemsize == 2 else 8)
  pad = lambda x, axis: jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
  whole = lambda *shape: pl.BlockSpec((None, *shape), lambda b, p, i, plan: (b, *(0,) * len(shape)))
  rows = R + more
  ins = [(pad(call.q, 2), whole(K, rows, H)), (pad(call.positions, 1)[:, :, None], whole(rows, 1))]
  if rule.alibi:
    ins.append((pad(call.slopes, 1)[:, :, None], pl.BlockSpec((K, rows, 1), lambda b, p, i, plan: (0, 0, 0))))
  along = functools.partial(_along, splits=splits, blocks=pl.cdiv(S, block))
  if call.key_positions is not None:
    x = call.key_positions[:, :, None]
    ins.append((x, along((x.shape[1], 1), block, in_memory=False)))
  ins += [part for x, is_key in ((call.keys, True), (call.values, False)) for part in _parts(x, is_key, layout, along)]
  arrays, in_specs = zip(*ins)
  sums = [(K, rows, H)] + ([] if rule.operation == 'sigmoid' else [(K, rows, 1)] * 2)
  out_specs = [pl.BlockSpec((None, None, *shape), lambda b, p, i, plan: (p, b, 0, 0, 0)) for shape in sums]
  results = pl.pallas_call(
    functools.partial(kernels.decode, rule=rule, layout=layout, splits=splits),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(B, splits, pl.cdiv(pl.cdiv(S, block), splits)), in_specs=in_specs, out_specs=out_specs
    ),
    out_shape=[jax.ShapeDtypeStruct((splits, B, *shape), jnp.float32) for shape in sums],
    name=f'{rule.operation}_decode_attention', interpret=interpret,
    **({} if interpret else {'compiler_params': _params(in_specs, arrays, out_specs, rows, layout)}),
  )(plan_4B, *arrays)  # fmt: skip
  return tuple(x[:, :, :, :R] for x in results)


def _block(call: Stored, quantised: bool) -> int:
  """Returns the slots of a block, a power of two."""
  (_, K, R, H) = call.q.shape
  token = 2 * K * (call.keys.codes.shape[3] if quantised else H * call.keys.dtype.itemsize)
  fits = BLOCK_BYTES // max(token, 4 * R)
  return min(max(LANES, 1 << (fits.bit_length() - 1)), 2048)


def _plan(rule: kernels.Rule, call: Stored, block: int):
  """Returns [4, B] int32: the row in memory, the slots in use, and the first and the end block that any query may see."""
  B, S = len(call.lengths), slots_of(call.keys)
  length_B = jnp.clip(call.lengths, 0, S)
  first_B = jnp.zeros_like(length_B)
  if call.key_positions is None:
    if rule.causal:
      length_B = jnp.minimum(length_B, jnp.max(call.positions, axis=1) + 1)
    if rule.window is not None and not rule.initial:
      first_B = jnp.clip(jnp.min(call.positions, axis=1) - rule.window + 1, 0, S)
  rows_B = jnp.arange(B) if call.rows is None else call.rows
  return jnp.stack([rows_B, length_B, first_B // block, -(-length_B // block)]).astype(jnp.int32)


def _along(shape: tuple[int, ...], block: int, *, splits: int, blocks: int, in_memory=True, token_axis=-1, shared=1):
  """Returns blocks of `block` entries along the token axis; `shape` is that of the other axes, and `shared` steps read the same."""

  def at(b, p, i, plan):
    first, end = kernels.span(plan, b, p, splits)
    # Steps after the last block name it again, so that nothing is fetched for them.
    j = jnp.clip(jnp.minimum(first + i, end - 1), 0, blocks - 1) // shared
    place = [0] * len(shape)
    place.insert(len(place) + 1 + token_axis, j)
    return (plan[0, b] if in_memory else b, *place)

  sizes = list(shape)
  sizes.insert(len(sizes) + 1 + token_axis, block)
  return pl.BlockSpec((None, *sizes), at)


def _parts(x: jax.Array | Codes, is_key: bool, layout: kernels.Layout, along):
  """Returns the arrays of keys or values with their blocks."""
  if not isinstance(x, Codes):
    K, H = x.shape[1], x.shape[3]
    if layout.values_last:  # Keys that are not quantised lie like values.
      return [(x.swapaxes(2, 3), along((K, H), layout.block))]
    return [(x, along((K, H), layout.block, token_axis=-2))]
  to_float = lambda s: s.astype(jnp.float32) if s.dtype == jnp.float16 else s  # Mosaic has no float16.
  arrays = x.codes, to_float(x.scale), to_float(x.minimum)
  K = arrays[0].shape[1]
  if not is_key:
    return [(a, along((K, a.shape[2]), layout.block)) for a in arrays]
  P = arrays[0].shape[3]
  if layout.keys_last:
    codes = arrays[0].swapaxes(2, 3), along((K, P), layout.block)
  else:
    codes = arrays[0], along((K, P), layout.block, token_axis=-2)
  groups, H = arrays[1].shape[2:]
  # A block of scales is whole lanes too, so that several blocks of codes share it.
  whole = groups <= LANES or layout.block == layout.slots
  width = groups if whole else LANES
  shared = pl.cdiv(layout.slots, layout.block) if whole else LANES * layout.group // layout.block
  scales = along((K, H), width, shared=shared, token_axis=-1 if layout.scales_last else -2)
  lay = lambda x: x.swapaxes(2, 3) if layout.scales_last else x
  return [codes, *((lay(x), scales) for x in arrays[1:])]


def _params(in_specs, arrays, out_specs, rows: int, layout: kernels.Layout):
  """Returns compiler parameters with room for the double-buffered blocks, if the default of 16 MiB is too little."""
  size = lambda shape, itemsize: math.prod(d or 1 for d in shape) * itemsize
  blocks = sum(size(s.block_shape, x.dtype.itemsize) for s, x in zip(in_specs, arrays))
  blocks += sum(size(s.block_shape, 4) for s in out_specs)
  H = arrays[0].shape[3]
  # Float32 values of one head: logits and weights, and dequantised keys and values.
  head = 4 * layout.block * (4 * rows + 6 * H)
  needed = 2 * blocks + head + 2**21
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=needed if needed > 2**24 else None
  )
