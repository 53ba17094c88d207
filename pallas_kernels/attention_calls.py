"""Calls of the attention kernels: padding, blocks and compiler parameters for each platform, and the grid.

On a TPU all keys of a head, and for dK and dV all queries of a group, stay in VMEM: G T H 8 bytes in bfloat16 with double
buffering (v5e has room for G T = 64k at H = 128, but not for 128k). On a GPU they are read block by block.

Array names carry shapes: B batch, T queries, S keys, N query heads, K key heads, H head dim.
"""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from pallas_kernels import attention_kernels as kernels
from pallas_kernels import attention_xla

FASTEST = {'tpu': 'tpu', 'cuda': 'gpu', 'rocm': 'gpu', 'cpu': 'xla'}
"""Platform -> how a call without an `implementation` runs: the kernels compiled for 'tpu' or 'gpu', or 'xla'."""
DEFAULT_BLOCKS = {'tpu': (256, 512), 'gpu': (64, 64), 'interpret': (128, 128)}  # (queries, keys), not tuned


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static arguments of a call, independent of shapes and platform."""

  operation: str
  causal: bool
  window: int | None
  scale: float
  bias: float
  alibi: bool
  block_q: int | None
  block_k: int | None
  num_warps: int = 4
  """On a GPU: number of warps (groups of 32 threads) that share a block."""
  num_stages: int = 2
  """On a GPU: number of pipeline stages, that is of blocks loaded at the same time."""


def platform_dependent(call, how: str | None, *arrays):
  """Returns call(kind, *arrays); `kind` is chosen when the program is lowered for a platform.

  how: 'xla' and 'interpret' are the kind on all platforms; 'pallas' is the platform's kernels; None is FASTEST.
  """
  if how in ('xla', 'interpret'):
    return call(how, *arrays)
  kinds = {'tpu': 'tpu', 'cuda': 'gpu', 'rocm': 'gpu'} if how == 'pallas' else FASTEST
  branches = {platform: functools.partial(call, kind) for platform, kind in kinds.items()}
  return jax.lax.platform_dependent(*arrays, **branches)


def forward(spec: Spec, platform: str, q, k, v, slopes, segments):
  """Returns out [B, T, N, H] and, for softmax, the log-sum-exp [B, N, T]; None for sigmoid."""
  if platform == 'xla':
    return attention_xla.forward(spec, q, k, v, slopes, segments)
  (B, T, N, _), rule = q.shape, _rule(spec, platform, q, k, segments)
  q_BNTH, k_BKSH, v_BKSH = _padded(q, rule.block_q, platform), *(_padded(x, rule.block_k, platform) for x in (k, v))
  padded_T = q_BNTH.shape[2]
  query, keys, column = _specs(rule, padded_T, k_BKSH.shape[2:])[:3]
  outs = [(q_BNTH.shape, q_BNTH.dtype, query)]
  if spec.operation == 'softmax':
    outs.append(((B, N, padded_T, 1), jnp.float32, column))
  ins = [
    (q_BNTH, query),
    (k_BKSH, keys),
    (v_BKSH, keys),
    *_segments_by_query(rule, segments, padded_T, k_BKSH.shape[2]),
  ]
  out, *lse = _call(kernels.forward, spec, rule, platform, slopes, (B, N, padded_T // rule.block_q), ins, outs)
  return _unpadded(out, q), lse[0][:, :, :T, 0] if lse else None


def backward(spec: Spec, platform: str, q, k, v, slopes, segments, dout, stats):
  """Returns dq, dk, dv. stats: (lse, delta), each [B, N, T], for softmax; () for sigmoid."""
  if platform == 'xla':
    return attention_xla.backward(spec, q, k, v, slopes, segments, dout, stats)
  (B, T, N, _), K, rule = q.shape, k.shape[2], _rule(spec, platform, q, k, segments)
  q_BNTH, dout_BNTH = (_padded(x, rule.block_q, platform) for x in (q, dout))
  k_BKSH, v_BKSH = (_padded(x, rule.block_k, platform) for x in (k, v))
  (padded_T, padded_H), padded_S = q_BNTH.shape[2:], k_BKSH.shape[2]
  query, keys, column, group, key, rows = _specs(rule, padded_T, k_BKSH.shape[2:])
  # The lse of padding rows is huge, so that exp(S - lse) is 0 there.
  fills = (-kernels.HIDDEN, 0.0)
  stats = [jnp.pad(x, ((0, 0), (0, 0), (0, padded_T - T)), constant_values=fill) for x, fill in zip(stats, fills)]

  ins = [(q_BNTH, query), (k_BKSH, keys), (v_BKSH, keys), (dout_BNTH, query)]
  ins += _segments_by_query(rule, segments, padded_T, padded_S)
  ins += [(x[..., None], column) for x in stats]
  grid = (B, N, padded_T // rule.block_q)
  (dq,) = _call(kernels.query_gradient, spec, rule, platform, slopes, grid, ins, [(q_BNTH.shape, q_BNTH.dtype, query)])

  heads_in_rows = lambda x: x.reshape(B, K, -1, padded_H)
  ins = [(heads_in_rows(q_BNTH), group), (k_BKSH, key), (v_BKSH, key), (heads_in_rows(dout_BNTH), group)]
  ins += _segments_by_key(rule, segments, padded_T, padded_S)
  ins += [(x.reshape(B, K, -1, 1, rule.block_q), rows) for x in stats]
  outs = [(k_BKSH.shape, k_BKSH.dtype, key), (v_BKSH.shape, v_BKSH.dtype, key)]
  dk, dv = _call(kernels.key_gradients, spec, rule, platform, slopes, (B, K, padded_S // rule.block_k), ins, outs)
  return _unpadded(dq, q), _unpadded(dk, k), _unpadded(dv, v)


def _rule(spec: Spec, platform: str, q, k, segments) -> kernels.Rule:
  (T, N), (S, K) = q.shape[1:3], k.shape[1:3]
  reach = None if spec.window is None else spec.window - 1
  default_q, default_k = DEFAULT_BLOCKS[platform]
  return kernels.Rule(
    operation=spec.operation, scale=spec.scale, bias=spec.bias, alibi=spec.alibi, segments=segments is not None,
    before=reach, after=0 if spec.causal else reach, keys=S, offset=S - T, group=N // K,
    block_q=_block(spec.block_q or default_q, T, platform), block_k=_block(spec.block_k or default_k, S, platform),
  )  # fmt: skip


def _block(size: int, length: int, platform: str) -> int:
  """Returns the block size: at most the padded sequence, at least 128 (lanes) on TPU and 16 (Triton's products) elsewhere."""
  smallest = 128 if platform == 'tpu' else 16
  return max(smallest, min(size, 1 << (length - 1).bit_length()))


def _padded(x_BTNH, block: int, platform: str):
  """Returns [B, N, T', H'] padded with zeros: T' is a multiple of `block`; H' one of 128 on TPU, a power of two elsewhere."""
  if platform == 'tpu' and x_BTNH.dtype == jnp.float16:
    x_BTNH = x_BTNH.astype(jnp.float32)  # Mosaic has no float16 loads.
  T, H = x_BTNH.shape[1], x_BTNH.shape[3]
  padded_H = -(-H // 128) * 128 if platform == 'tpu' else max(16, 1 << (H - 1).bit_length())
  return jnp.pad(x_BTNH.swapaxes(1, 2), ((0, 0), (0, 0), (0, -T % block), (0, padded_H - H)))


def _unpadded(x_BNTH, like_BTNH):
  T, _, H = like_BTNH.shape[1:]
  return x_BNTH[:, :, :T, :H].swapaxes(1, 2).astype(like_BTNH.dtype)


def _specs(rule: kernels.Rule, padded_T: int, keys_SH: tuple[int, int]):
  """Returns the blocks of grids (B, N, query block) and (B, K, key block)."""
  S, H = keys_SH
  G, block_q, block_k = rule.group, rule.block_q, rule.block_k
  query = pl.BlockSpec((None, None, block_q, H), lambda b, n, i: (b, n, i, 0))
  keys = pl.BlockSpec((None, None, S, H), lambda b, n, i: (b, n // G, 0, 0))
  column = pl.BlockSpec((None, None, block_q, 1), lambda b, n, i: (b, n, i, 0))
  group = pl.BlockSpec((None, None, G * padded_T, H), lambda b, k, j: (b, k, 0, 0))
  key = pl.BlockSpec((None, None, block_k, H), lambda b, k, j: (b, k, j, 0))
  rows = pl.BlockSpec((None, None, G * padded_T // block_q, 1, block_q), lambda b, k, j: (b, k, 0, 0, 0))
  return query, keys, column, group, key, rows


def _segments_by_query(rule: kernels.Rule, segments_BT, padded_T: int, padded_S: int):
  """Returns the segments of a block of queries as a column and of all keys as a row, with their blocks; nothing for None."""
  if segments_BT is None:
    return []
  column = pl.BlockSpec((None, rule.block_q, 1), lambda b, n, i: (b, i, 0))
  row = pl.BlockSpec((None, 1, padded_S), lambda b, n, i: (b, 0, 0))
  return [(_longer(segments_BT, padded_T)[:, :, None], column), (_longer(segments_BT, padded_S)[:, None], row)]


def _segments_by_key(rule: kernels.Rule, segments_BT, padded_T: int, padded_S: int):
  """Returns the segments of a block of keys as a column and of each block of queries as a row; nothing for None."""
  if segments_BT is None:
    return []
  column = pl.BlockSpec((None, rule.block_k, 1), lambda b, k, j: (b, j, 0))
  count = padded_T // rule.block_q
  rows = pl.BlockSpec((None, count, 1, rule.block_q), lambda b, k, j: (b, 0, 0, 0))
  by_block = _longer(segments_BT, padded_T).reshape(-1, count, 1, rule.block_q)
  return [(_longer(segments_BT, padded_S)[:, :, None], column), (by_block, rows)]


def _longer(segments_BT, length: int):
  return jnp.pad(segments_BT, ((0, 0), (0, length - segments_BT.shape[1])))


def _call(kernel, spec: Spec, rule: kernels.Rule, platform: str, slopes_BN, grid, ins, outs):
  arrays, in_specs = zip(*ins)
  shapes, dtypes, out_specs = zip(*outs)
  blocks = [(spec.block_shape, x.dtype) for x, spec in ins] + [(spec.block_shape, dtype) for _, dtype, spec in outs]
  options = {
    'tpu': lambda: {'compiler_params': _tpu_params(blocks, rule)},
    'gpu': lambda: {'compiler_params': plgpu.CompilerParams(num_warps=spec.num_warps, num_stages=spec.num_stages)},
    'interpret': lambda: {'interpret': True},
  }[platform]()
  slopes_spec = pl.BlockSpec(memory_space=pltpu.SMEM) if platform == 'tpu' else pl.BlockSpec()
  return pl.pallas_call(
    functools.partial(kernel, rule=rule), grid=grid, in_specs=[slopes_spec, *in_specs], out_specs=list(out_specs),
    out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes)],
    name=f'{rule.operation}_attention_{kernel.__name__}', **options,
  )(slopes_BN, *arrays)  # fmt: skip


def _tpu_params(blocks, rule: kernels.Rule):
  """Returns compiler parameters with a VMEM limit that fits the double-buffered blocks, if the default of 16 MiB is too small."""
  size = lambda shape, dtype: math.prod(d or 1 for d in shape) * jnp.dtype(dtype).itemsize
  tiles = 8 * 4 * rule.block_q * rule.block_k
  needed = 2 * sum(size(shape, dtype) for shape, dtype in blocks) + tiles + 2**21
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'parallel', 'arbitrary'), vmem_limit_bytes=needed if needed > 2**24 else None
  )
