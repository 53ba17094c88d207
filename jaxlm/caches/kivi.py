"""Min-max quantisation of keys and values with packed codes (KIVI, https://arxiv.org/abs/2402.02750).

  scale = (max - min) / (2^b - 1),  code = round(clip((x - min) / scale, 0, 2^b - 1)),  x ~ code scale + min

per group. A group is consecutive tokens of one channel for keys, and consecutive channels of one token for values.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from jaxlm.cache_config import KiviConfig as KiviConfig
from jaxlm.caches import sizes

if TYPE_CHECKING:
  from jaxtyping import Array, Float, UInt8


@struct.dataclass
class Quantized:
  """Packed codes with the scale and the minimum of each group."""

  codes: jax.Array  # uint8; keys: [B, K, S, H bits / 8]; values: [B, K, H bits / 8, S]
  scale: jax.Array  # keys: [B, K, S / group, H]; values: [B, K, H / group, S]
  minimum: jax.Array  # same shape as scale
  bits: int = struct.field(pytree_node=False)
  # True for values: the token axis is last, so that weighted sums over tokens read contiguous memory.
  tokens_last: bool = struct.field(pytree_node=False, default=False)

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  @property
  def by_token(self) -> 'Quantized':
    """The same numbers with the token axis before the channel axis."""
    if not self.tokens_last:
      return self
    swapped = (x.swapaxes(-1, -2) for x in (self.codes, self.scale, self.minimum))
    return Quantized(*swapped, self.bits)


def quantize_keys(keys: Float[Array, 'B K S H'], config: KiviConfig) -> Quantized:
  """Returns keys quantised per channel, in groups of tokens. Raises ValueError if the group size does not divide S."""
  B, K, S, H = keys.shape
  if S % config.group:
    raise ValueError(f'{S} keys are no whole number of groups of {config.group}.')
  grouped = keys.reshape(B, K, S // config.group, config.group, H)
  return _quantize(grouped, 3, keys.shape, config)


def quantize_values(values: Float[Array, 'B K S H'], config: KiviConfig) -> Quantized:
  """Returns values quantised per token, in groups of channels. Raises ValueError if the group size does not divide H."""
  B, K, S, H = values.shape
  config.check_head_dim(H)
  by_token = _quantize(values.reshape(B, K, S, H // config.group, config.group), 4, values.shape, config)
  arrays = (by_token.codes, by_token.scale, by_token.minimum)
  return Quantized(*(x.swapaxes(2, 3) for x in arrays), config.bits, tokens_last=True)


def _quantize(grouped, axis: int, shape, config: KiviConfig) -> Quantized:
  kept = jnp.bfloat16 if grouped.dtype == jnp.bfloat16 else jnp.float16
  limit = float(jnp.finfo(kept).max)
  grouped = jnp.clip(grouped.astype(jnp.float32), -limit, limit)
  low, high = grouped.min(axis=axis, keepdims=True), grouped.max(axis=axis, keepdims=True)
  levels = 2**config.bits - 1
  # Codes are computed from the rounded scale and minimum that are stored, so that this rounding adds no error to the codes.
  scale, minimum = ((high - low) / levels).astype(kept), low.astype(kept)
  scale = jnp.where(scale == 0, jnp.ones_like(scale), scale)
  codes = jnp.round((grouped - minimum.astype(jnp.float32)) / scale.astype(jnp.float32))
  codes = jnp.clip(codes, 0, levels).astype(jnp.uint8).reshape(shape)
  return Quantized(pack_codes(codes, config.bits), scale.squeeze(axis), minimum.squeeze(axis), config.bits)


def dequantize(packed: Quantized, dtype=jnp.float32) -> Float[Array, 'B K S H']:
  """Returns code * scale + minimum."""
  packed = packed.by_token
  codes = unpack_codes(packed.codes, packed.bits).astype(jnp.float32)
  B, K, S, H = codes.shape
  _, _, rows, columns = packed.scale.shape
  # Only one of the two axes is grouped; the group size of the other is 1.
  spread = lambda x: x.astype(jnp.float32)[:, :, :, None, :, None]
  grouped = codes.reshape(B, K, rows, S // rows, columns, H // columns)
  return (grouped * spread(packed.scale) + spread(packed.minimum)).reshape(B, K, S, H).astype(dtype)


FEW = 4
"""Up to this many queries use matrix-vector products on a CPU, because XLA fuses unpacking into them."""

FEW_TOGETHER = 2
"""Up to this many queries of a key head each unpack the codes again on an accelerator; for more, unpacked codes are written out once.

Unpacking for each query costs arithmetic: with four queries, an H100 took three times as long as over a bfloat16 cache.
"""

CACHED = 2048
"""About this many tokens are unpacked together on a CPU: a quarter of a megabyte, which fits the cache of a core."""


def spans(length: int, group: int) -> list[slice]:
  """Returns slices that cover `length` tokens. All have the same length, a multiple of `group`; the last may be shorter."""
  count = max(1, round(length / CACHED))
  size = -(-length // (count * group)) * group
  return [slice(at, min(at + size, length)) for at in range(0, length, size)]


def score_quantized(q: Float[Array, 'R H'], keys: Quantized) -> Float[Array, 'R S']:
  """Returns float32 products of queries with one head's quantised keys, without writing all dequantised keys to memory.

  The products are computed for one span of tokens and one bit field of the bytes at a time.
  """
  q = q.astype(jnp.float32)
  scale_GH, minimum_GH = keys.scale.astype(jnp.float32), keys.minimum.astype(jnp.float32)
  S, P = keys.codes.shape
  group = S // len(scale_GH)

  def product(span: slice):
    """Returns the products with code * scale of these tokens' keys; the minima are added later."""
    scale = scale_GH[span.start // group : span.stop // group]
    total = 0.0
    for i in range(8 // keys.bits):
      columns = slice(i * P, (i + 1) * P)
      scaled = piece(keys.codes[span], i, keys.bits).reshape(len(scale), group, P) * scale[:, None, columns]
      scaled, q_RP = scaled.reshape(-1, P), q[:, columns]
      total += jnp.stack([scaled @ q_P for q_P in q_RP]) if len(q) <= FEW else q_RP @ scaled.T
    return total

  logits_RS = jnp.concatenate([product(span) for span in spans(S, group)], axis=1)
  offset_RG = q @ minimum_GH.T
  return (logits_RS.reshape(len(q), -1, group) + offset_RG[:, :, None]).reshape(len(q), S)


def mix_quantized(weights: Float[Array, 'R S'], values: Quantized) -> Float[Array, 'R H']:
  """Returns float32 weighted sums of one head's quantised values. The scales multiply the weights, not the codes."""
  scale_GS, minimum_GS = values.scale.astype(jnp.float32), values.minimum.astype(jnp.float32)
  P, groups = len(values.codes), len(scale_GS)
  group = P * 8 // values.bits // groups
  run = math.gcd(P, group)  # Number of consecutive channels in one bit field that share a scale.
  few = len(weights) <= FEW

  def product(w_RS, channels):
    return jnp.stack([channels @ w_S for w_S in w_RS]) if few else w_RS @ channels.T

  sums = []
  for i in range(8 // values.bits):
    for start in range(0, P, run):
      scaled_RS = weights * scale_GS[None, (i * P + start) // group]
      codes = values.codes[start : start + run]
      parts = [(scaled_RS[:, at], piece(codes[:, at], i, values.bits)) for at in spans(weights.shape[1], 1)]
      sums.append(sum(product(w_RS, channels) for w_RS, channels in parts))
  return jnp.concatenate(sums, axis=1) + jnp.repeat(weights @ minimum_GS.T, group, axis=1)


def score_codes(q: Float[Array, 'B K R H'], keys: Quantized) -> Float[Array, 'B K R S']:
  """Returns float32 products of a few queries with quantised keys, as one sum over channels.

  XLA fuses the unpacking into this sum on GPU and TPU. Each query unpacks the codes again, and they are not written to memory.
  """
  B, K, S, P = keys.codes.shape
  groups = keys.scale.shape[2]
  q, scale = q.astype(jnp.float32), keys.scale.astype(jnp.float32)

  def products(i: int):
    channels = slice(i * P, (i + 1) * P)
    codes = piece(keys.codes, i, keys.bits).reshape(B, K, groups, S // groups, P)
    scaled = (codes * scale[:, :, :, None, channels]).reshape(B, K, S, P)
    return q[:, :, :, None, channels] * scaled[:, :, None]

  logits = sum(products(i) for i in range(8 // keys.bits)).sum(axis=-1)
  offset = jnp.einsum('BKRH,BKGH->BKRG', q, keys.minimum.astype(jnp.float32), precision='highest')
  return logits + jnp.repeat(offset, S // groups, axis=-1)


def mix_codes(weights: Float[Array, 'B K R S'], values: Quantized) -> Float[Array, 'B K R H']:
  """Returns float32 weighted sums of quantised values, with the method of `score_codes`."""
  P, groups = values.codes.shape[2], values.scale.shape[2]
  group = P * 8 // values.bits // groups
  scale = jnp.repeat(values.scale.astype(jnp.float32), group, axis=2)  # [B, K, H, S]; XLA fuses it too

  def sums(i: int):
    scaled = piece(values.codes, i, values.bits) * scale[:, :, i * P : (i + 1) * P]
    return (weights[:, :, :, None] * scaled[:, :, None]).sum(axis=-1)

  offset = jnp.einsum('BKRS,BKGS->BKRG', weights, values.minimum.astype(jnp.float32), precision='highest')
  pieces = jnp.concatenate([sums(i) for i in range(8 // values.bits)], axis=-1)
  return pieces + jnp.repeat(offset, group, axis=-1)


def piece(packed: UInt8[Array, '*shape'], i: int, bits: int) -> Float[Array, '*shape']:
  """Returns the codes in the i-th bit field of each byte: channels i P to (i + 1) P - 1."""
  return ((packed >> jnp.uint8(i * bits)) & jnp.uint8(2**bits - 1)).astype(jnp.float32)


def pack_codes(codes: UInt8[Array, '*rows H'], bits: int) -> UInt8[Array, '*rows P']:
  """Returns codes packed into bytes. Byte j holds codes j, j + P, ..., so that each bit field unpacks to contiguous channels."""
  pieces = jnp.split(codes, 8 // bits, axis=-1)
  packed = pieces[0]
  for i, piece in enumerate(pieces[1:], 1):
    packed = packed | (piece << (i * bits))
  return packed


def unpack_codes(packed: UInt8[Array, '*rows P'], bits: int) -> UInt8[Array, '*rows H']:
  """Returns what `pack_codes` packed."""
  mask = jnp.uint8(2**bits - 1)
  return jnp.concatenate([(packed >> jnp.uint8(i * bits)) & mask for i in range(8 // bits)], axis=-1)
