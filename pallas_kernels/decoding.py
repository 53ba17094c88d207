"""Attention of a few new tokens over a long cache that is only read: plain, a ring, or quantised.

  out_t = sum_s w_ts v_s,   w = softmax or sigmoid of s_ts

decoding_kernels.py has the Pallas kernel, decoding_calls.py calls it, and decoding_xla.py has the definition in XLA operations.
The sums over the cache come from either of them. Those over tokens beside the cache, which are few, are XLA operations.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import decoding_calls as calls
from pallas_kernels import decoding_kernels as kernels
from pallas_kernels import decoding_xla as xla
from pallas_kernels import platforms
from pallas_kernels.decoding_calls import Codes

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

OPERATIONS = ('softmax', 'sigmoid')
IMPLEMENTATIONS = ('pallas', 'xla')


class Beside(NamedTuple):
  """M tokens that are not in the cache, for example a drafted tree. Every row has all M; `mask` hides some."""

  keys: jax.Array  # [B, K, M, H]
  values: jax.Array  # [B, K, M, H]
  positions: jax.Array  # [B, M] or [B, K, M] int32
  mask: jax.Array | None = None  # [B, T, M] bool: those that each query may see, besides the rule; None: all


class Slot(NamedTuple):
  """An extra key that every query sees, such as a learned attention sink."""

  logits: jax.Array  # [B, T, N] or [N], final: neither scaled nor capped
  values: jax.Array | None = None  # [K, H]; None: 0


def decode_attention(
  q: Float[Array, 'B T N H'],
  keys: Float[Array, 'B K S H'] | Codes,
  values: Float[Array, 'B K S H'] | Codes,
  *,
  positions: Int[Array, 'B T'],
  key_positions: Int[Array, 'B S'] | Int[Array, 'B K S'] | None = None,
  lengths: Int[Array, ' B'] | None = None,
  rows: Int[Array, ' B'] | None = None,
  beside: Beside | None = None,
  slot: Slot | None = None,
  operation: str = 'softmax',
  causal: bool = True,
  window: int | None = None,
  initial: int = 0,
  scale: float | None = None,
  bias: float = 0.0,
  softcap: float | None = None,
  alibi_slopes: Float[Array, ' N'] | None = None,
  block_s: int | None = None,
  splits: int = 1,
  implementation: str | None = None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """Returns the attention of T queries over the tokens of a cache and over tokens beside it, in q's dtype.

  The logit of a query and a key is softcap tanh(scale q . k / softcap) + bias - slope |distance|, with distances between
  positions. Products accumulate in float32. The output of a query that sees no key is 0, for softmax too. The keys and values of a
  head are read once for all queries of its group. The kernel reads no block after the last slot in use, and has no gradient.

  Args:
    q: queries, in any order; N is a multiple of K. Meant for T up to 64.
    keys, values: the cache with heads first, of one dtype; or `Codes`, which are quantised. Slots in use are finite.
    positions: of the queries, int32.
    key_positions: the position of each slot's token, 2^30 where there is none. None: a slot is its position.
    lengths: slots in use of each row, the first ones; None: those up to the row's last query, or all with `key_positions`.
    rows: the row of `keys` and `values` that each row of the batch reads, as in a pool; None: row b reads row b.
    beside: tokens that are not in the cache. The same rule and positions apply to them.
    slot: an extra key without a position.
    operation: 'softmax', or 'sigmoid' (https://arxiv.org/abs/2409.04431).
    causal: hides keys after the query's position.
    window: number of positions that a query sees, its own included. Needs `causal`.
    initial: tokens at positions below this are seen from outside the window too (https://arxiv.org/abs/2309.17453).
    scale: factor of the dot products (None: H ** -0.5).
    softcap: bound of the scaled products, above 0. None: no bound.
    block_s: slots of a block, a multiple of 128 unless it is at least S; None: about 2 MiB of the cache.
    splits: parts of a row whose sums are computed apart and then added, for a chip with several cores.
    implementation: 'pallas' (TPU; float32 or bfloat16) or 'xla' (everywhere). None: `decoding_calls.FASTEST` of the platform,
      and 'xla' for float32 or where the kernel does not support the arguments.
    interpret: run the kernel as ordinary JAX operations on any platform, whatever `implementation` says; slow, for tests. May be
      `pltpu.InterpretParams`.

  Raises:
    ValueError: arguments do not fit together, or `implementation` does not support them.
  """
  _check(q, keys, values, positions, key_positions, lengths, rows, beside, slot, alibi_slopes)
  _check_options(operation, causal, window, softcap, block_s, calls.slots_of(keys), splits, implementation)
  reason = calls.cannot(q, keys, values)
  if (interpret or implementation == 'pallas') and reason:
    raise ValueError(f"implementation='pallas' does not support this call: {reason}. Leave it out, or pass 'xla'.")
  (B, T, N, H), K, S = q.shape, _heads(keys), calls.slots_of(keys)
  rule = kernels.Rule(
    operation=operation, scale=H**-0.5 if scale is None else float(scale), bias=float(bias), softcap=softcap,
    alibi=alibi_slopes is not None, causal=bool(causal), initial=initial,
    window=None if window is None else min(window, kernels.UNUSED),  # Larger numbers would overflow int32 in sums with positions.
  )  # fmt: skip
  by_query = lambda x: jnp.tile(x, (1, N // K, *(1,) * (x.ndim - 2)))  # [B, T, ...] -> [B, R, ...]
  call = calls.Stored(
    q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H), keys, values,
    positions=by_query(jnp.broadcast_to(positions, (B, T)).astype(jnp.int32)),
    key_positions=None if key_positions is None else _by_head(key_positions),
    lengths=jnp.full(B, S, jnp.int32) if lengths is None else lengths.astype(jnp.int32),
    rows=rows,
    slopes=None if alibi_slopes is None else jnp.repeat(jnp.asarray(alibi_slopes, jnp.float32).reshape(K, -1), T, axis=1),
  )  # fmt: skip
  parts = [_stored(rule, call, block_s, splits, implementation, interpret, supported=reason is None)]
  if beside is not None:
    mask = None if beside.mask is None else by_query(beside.mask)[:, None]
    tokens = beside.keys, beside.values, call.positions, _by_head(beside.positions), mask
    parts.append(xla.sums(rule, call.q, *tokens, call.slopes))
  if slot is not None:
    parts.append(_slot(rule, slot, call.q.shape, T))
  out_BKRH = _output(parts).astype(q.dtype)
  return out_BKRH.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _stored(rule, call: calls.Stored, block_s, splits: int, implementation, interpret, *, supported: bool):
  def kernel(call):
    sums = calls.stored(rule, call, block_s, splits, interpret)
    return _summed([tuple(x[p] for x in sums) for p in range(sums[0].shape[0])])

  branch = {'pallas': kernel, 'xla': functools.partial(xla.stored, rule)}
  if interpret:
    return kernel(call)
  if implementation == 'pallas':
    platforms.require(('tpu',), call.q)
    elsewhere = lambda call: platforms.refused(branch['xla'](call), kernels=('tpu',))
    return jax.lax.platform_dependent(call, tpu=kernel, default=elsewhere)
  if implementation == 'xla' or not supported or call.q.dtype == jnp.float32 or 'pallas' not in calls.FASTEST.values():
    return branch['xla'](call)
  return jax.lax.platform_dependent(call, **{platform: branch[name] for platform, name in calls.FASTEST.items()})


def _slot(rule: kernels.Rule, slot: Slot, shape: tuple[int, ...], T: int) -> tuple[jax.Array, ...]:
  """Returns the sums over the extra key alone."""
  B, K, R, H = shape
  logits_BTN = jnp.broadcast_to(jnp.asarray(slot.logits, jnp.float32), (B, T, K * (R // T)))
  logits_BKR1 = logits_BTN.reshape(B, T, K, -1).transpose(0, 2, 3, 1).reshape(B, K, R, 1)
  values = (
    jnp.zeros((1, 1, 1, H), jnp.float32) if slot.values is None else slot.values.astype(jnp.float32)[None, :, None]
  )
  if rule.operation == 'sigmoid':
    return (jax.nn.sigmoid(logits_BKR1) * values,)
  return jnp.broadcast_to(values, shape), logits_BKR1, jnp.ones_like(logits_BKR1)


def _summed(parts: list[tuple[jax.Array, ...]]) -> tuple[jax.Array, ...]:
  """Returns the sums over all tokens of several parts."""
  if len(parts) == 1:
    return parts[0]
  outs, *stats = zip(*parts)
  if not stats:
    return (sum(outs),)
  tops, totals = stats
  top = functools.reduce(jnp.maximum, tops)
  shrunk = [jnp.exp(t - top) for t in tops]
  return sum(s * x for s, x in zip(shrunk, outs)), top, sum(s * x for s, x in zip(shrunk, totals))


def _output(parts: list[tuple[jax.Array, ...]]) -> jax.Array:
  """Returns the output of the sums over all parts."""
  out, *stats = _summed(parts)
  if not stats:
    return out
  return out / jnp.where(stats[1] == 0.0, 1.0, stats[1])


def _by_head(positions):
  """Returns [B, K or 1, S]."""
  return (positions if positions.ndim == 3 else positions[:, None]).astype(jnp.int32)


def _heads(keys) -> int:
  return (keys.codes if isinstance(keys, Codes) else keys).shape[1]


def _check(q, keys, values, positions, key_positions, lengths, rows, beside, slot, alibi_slopes) -> None:
  if isinstance(keys, Codes) != isinstance(values, Codes):
    raise ValueError('keys and values must both be arrays, or both be Codes.')
  if q.ndim != 4:
    raise ValueError(f'q {q.shape}: expected [B, T, N, H].')
  B, T, N, H = q.shape
  if isinstance(keys, Codes):
    _check_codes(H, keys, values)
  else:
    shapes = f'q {q.shape}, keys {keys.shape}, values {values.shape}'
    if keys.ndim != 4 or keys.shape != values.shape or keys.shape[3] != H:
      raise ValueError(f'{shapes}: expected q [B, T, N, H] and keys, values [B, K, S, H].')
    if keys.dtype != values.dtype:
      raise ValueError(f'keys {keys.dtype}, values {values.dtype}: expected one dtype.')
  K, S, stored = _heads(keys), calls.slots_of(keys), (keys.codes if isinstance(keys, Codes) else keys).shape[0]
  if 0 in (B, T, N, H, K, S):
    raise ValueError(f'q {q.shape}, {K} key heads, {S} slots: no dimension may be 0.')
  if N % K:
    raise ValueError(f'{N} query heads are not a multiple of {K} key heads.')
  if rows is None and stored != B:
    raise ValueError(f'q has {B} rows and the cache {stored}: give `rows`, which says the row of the cache for each.')
  wanted = {
    'positions': (positions, [(B, T), (1, T)]), 'key_positions': (key_positions, [(B, S), (1, S), (B, K, S)]),
    'lengths': (lengths, [(B,)]), 'rows': (rows, [(B,)]), 'alibi_slopes': (alibi_slopes, [(N,)]),
  }  # fmt: skip
  if beside is not None:
    M = beside.keys.shape[2]
    wanted |= {
      'beside.keys': (beside.keys, [(B, K, M, H)]), 'beside.values': (beside.values, [(B, K, M, H)]),
      'beside.positions': (beside.positions, [(B, M), (B, K, M)]), 'beside.mask': (beside.mask, [(B, T, M), (1, T, M)]),
    }  # fmt: skip
  if slot is not None:
    wanted |= {'slot.logits': (slot.logits, [(B, T, N), (N,)]), 'slot.values': (slot.values, [(K, H)])}
  for name, (x, shapes) in wanted.items():
    if x is not None and jnp.shape(x) not in shapes:
      raise ValueError(f'{name} {jnp.shape(x)}: expected {" or ".join(str(list(s)) for s in shapes)}.')


def _check_codes(H: int, keys: Codes, values: Codes) -> None:
  """Raises ValueError if the arrays of quantised keys and values do not fit together."""
  R, K, S, P = keys.codes.shape
  shapes = f'head size {H}, codes of keys {keys.codes.shape} and values {values.codes.shape}'
  if values.codes.shape != (R, K, P, S) or P * 8 not in (2 * H, 4 * H, 8 * H):
    raise ValueError(f'{shapes}: expected [B, K, S, P] and [B, K, P, S], with P = H bits / 8 and 2, 4 or 8 bits.')
  for name, x, axis, shape in (('keys', keys, 2, (R, K, S, H)), ('values', values, 2, (R, K, H, S))):
    groups = x.scale.shape[axis]
    wanted = shape[:axis] + (groups,) + shape[axis + 1 :]
    if x.scale.shape != wanted or x.minimum.shape != wanted or shape[axis] % groups:
      raise ValueError(
        f'{name}: scale {x.scale.shape} and minimum {x.minimum.shape} must be alike, and {list(shape)} a whole number of groups.'
      )


def _check_options(operation, causal, window, softcap, block_s, S: int, splits, implementation) -> None:
  if operation not in OPERATIONS:
    raise ValueError(f'{operation=} is not one of {", ".join(OPERATIONS)}.')
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(f'{implementation=} is not one of {", ".join(IMPLEMENTATIONS)}, or None.')
  if window is not None and (window < 1 or not causal):
    raise ValueError(
      f'{window=} must be at least 1, because a query counts itself, and needs causal=True, not {causal}.'
    )
  if softcap is not None and not softcap > 0:
    raise ValueError(f'{softcap=} must be above 0; None leaves the logits as they are.')
  if splits < 1:
    raise ValueError(f'{splits=} must be at least 1, which keeps a row in one part.')
  if block_s is not None and block_s < S and (block_s < 1 or block_s % calls.LANES):
    raise ValueError(f'{block_s=} must be a multiple of {calls.LANES}, or at least the number of slots, {S}.')
