"""Min-max quantisation of keys and values, packed (KIVI, https://arxiv.org/abs/2402.02750).

  scale = (max - min) / (2^b - 1),  code = round(clip((x - min) / scale, 0, 2^b - 1)),  x ~ code scale + min

per group: of consecutive tokens of one channel for keys, of consecutive channels of one token for values.
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

  codes: jax.Array  # [B, K, S, H bits / 8] uint8 of keys; of values [B, K, H bits / 8, S]
  scale: jax.Array  # [B, K, S / group, H] of keys; of values [B, K, H / group, S]
  minimum: jax.Array  # as scale
  bits: int = struct.field(pytree_node=False)
  # Values have their tokens last, so that their weighted sums run along memory.
  tokens_last: bool = struct.field(pytree_node=False, default=False)

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  @property
  def by_token(self) -> 'Quantized':
    """The same with the tokens before the channels."""
    if not self.tokens_last:
      return self
    swapped = (x.swapaxes(-1, -2) for x in (self.codes, self.scale, self.minimum))
    return Quantized(*swapped, self.bits)


def quantize_keys(keys: Float[Array, 'B K S H'], config: KiviConfig) -> Quantized:
  """Returns keys quantised per channel, in groups of tokens. Raises ValueError unless these divide S."""
  B, K, S, H = keys.shape
  if S % config.group:
    raise ValueError(f'{S} keys are no whole number of groups of {config.group}.')
  grouped = keys.reshape(B, K, S // config.group, config.group, H)
  return _quantize(grouped, 3, keys.shape, config)


def quantize_values(values: Float[Array, 'B K S H'], config: KiviConfig) -> Quantized:
  """Returns values quantised per token, in groups of channels. Raises ValueError unless these divide H."""
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
  # Codes are taken with scale and minimum as they are kept, so that their rounding is not added to the codes' own.
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
  # One of the two axes is grouped, the other one whole.
  spread = lambda x: x.astype(jnp.float32)[:, :, :, None, :, None]
  grouped = codes.reshape(B, K, rows, S // rows, columns, H // columns)
  return (grouped * spread(packed.scale) + spread(packed.minimum)).reshape(B, K, S, H).astype(dtype)


FEW = 4
"""So many queries take matrix-vector products, into which XLA's CPU backend fuses the unpacking."""

FEW_TOGETHER = 2
"""So many queries of a key head unpack codes once each on an accelerator; for more, codes are unpacked once and written out.

Unpacking is arithmetic: with four queries an H100 took three times as long as over a cache of bfloat16 that is four times larger.
"""

CACHED = 2048
"""So many tokens, about, are unpacked together: a quarter of a megabyte a piece, which stays in a core's cache."""


def spans(length: int, group: int) -> list[slice]:
  """Returns equal parts of `length` tokens, in whole groups but the last."""
  count = max(1, round(length / CACHED))
  size = -(-length // (count * group)) * group
  return [slice(at, min(at + size, length)) for at in range(0, length, size)]


def score_quantized(q: Float[Array, 'R H'], keys: Quantized) -> Float[Array, 'R S']:
  """Returns products with one head's quantised keys, float32, without writing the keys out whole.

  Some tokens and one place of the bytes at a time, each a product of its own.
  """
  q = q.astype(jnp.float32)
  scale_GH, minimum_GH = keys.scale.astype(jnp.float32), keys.minimum.astype(jnp.float32)
  S, P = keys.codes.shape
  group = S // len(scale_GH)

  def product(span: slice):
    """Returns the products with these tokens' keys, without their minima."""
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
  """Returns weighted sums of one head's quantised values, float32. Scales are taken into the weights, not the codes."""
  scale_GS, minimum_GS = values.scale.astype(jnp.float32), values.minimum.astype(jnp.float32)
  P, groups = len(values.codes), len(scale_GS)
  group = P * 8 // values.bits // groups
  run = math.gcd(P, group)  # Channels of one piece that share a scale.
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
  """Returns products with quantised keys, float32, as one sum over channels, into which a GPU's or TPU's compiler fuses the unpacking.

  Few queries: each unpacks the codes again, and none are written out.
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
  """Returns weighted sums of quantised values, float32, as `score_codes` does its products."""
  P, groups = values.codes.shape[2], values.scale.shape[2]
  group = P * 8 // values.bits // groups
  scale = jnp.repeat(values.scale.astype(jnp.float32), group, axis=2)  # [B, K, H, S], fused too

  def sums(i: int):
    scaled = piece(values.codes, i, values.bits) * scale[:, :, i * P : (i + 1) * P]
    return (weights[:, :, :, None] * scaled[:, :, None]).sum(axis=-1)

  offset = jnp.einsum('BKRS,BKGS->BKRG', weights, values.minimum.astype(jnp.float32), precision='highest')
  pieces = jnp.concatenate([sums(i) for i in range(8 // values.bits)], axis=-1)
  return pieces + jnp.repeat(offset, group, axis=-1)


def piece(packed: UInt8[Array, '*shape'], i: int, bits: int) -> Float[Array, '*shape']:
  """Returns the codes in the i-th place of each byte: channels i P to (i + 1) P - 1."""
  return ((packed >> jnp.uint8(i * bits)) & jnp.uint8(2**bits - 1)).astype(jnp.float32)


def pack_codes(codes: UInt8[Array, '*rows H'], bits: int) -> UInt8[Array, '*rows P']:
  """Returns codes packed into bytes; byte j holds codes j, j + P, ..., so that each unpacks as one contiguous piece."""
  pieces = jnp.split(codes, 8 // bits, axis=-1)
  packed = pieces[0]
  for i, piece in enumerate(pieces[1:], 1):
    packed = packed | (piece << (i * bits))
  return packed


def unpack_codes(packed: UInt8[Array, '*rows P'], bits: int) -> UInt8[Array, '*rows H']:
  """Returns what `pack_codes` packed."""
  mask = jnp.uint8(2**bits - 1)
  return jnp.concatenate([(packed >> jnp.uint8(i * bits)) & mask for i in range(8 // bits)], axis=-1)
