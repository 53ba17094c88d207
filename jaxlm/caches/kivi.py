"""Min-max quantisation of keys and values, packed (KIVI, https://arxiv.org/abs/2402.02750).

  scale = (max - min) / (2^b - 1),  code = round(clip((x - min) / scale, 0, 2^b - 1)),  x ~ code scale + min

per group: of consecutive tokens of one channel for keys, of consecutive channels of one token for values.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxlm.cache_config import KiviConfig as KiviConfig


@struct.dataclass
class Quantized:
  """Packed codes with the scale and the minimum of each group."""

  codes: jax.Array  # [B, K, S, H bits / 8] uint8
  scale: jax.Array  # [B, K, S / group, H] of keys, [B, K, S, H / group] of values
  minimum: jax.Array  # as scale
  bits: int = struct.field(pytree_node=False)

  @property
  def nbytes(self) -> int:
    return self.codes.nbytes + self.scale.nbytes + self.minimum.nbytes


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
  return _quantize(values.reshape(B, K, S, H // config.group, config.group), 4, values.shape, config)


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
  codes = unpack_codes(packed.codes, packed.bits).astype(jnp.float32)
  B, K, S, H = codes.shape
  _, _, rows, columns = packed.scale.shape
  # One of the two axes is grouped, the other one whole.
  spread = lambda x: x.astype(jnp.float32)[:, :, :, None, :, None]
  grouped = codes.reshape(B, K, rows, S // rows, columns, H // columns)
  return (grouped * spread(packed.scale) + spread(packed.minimum)).reshape(B, K, S, H).astype(dtype)


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
