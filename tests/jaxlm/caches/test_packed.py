"""Quantised memories: the formula, its bytes, and that packing step by step equals packing at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.attend import attend as attend_densely
from jaxlm.attention.rule import layer_rule
from jaxlm.caches import kivi, packed, slots
from jaxlm.caches.kivi import KiviConfig
from jaxlm.caches.slots import EMPTY
from tests.models import TINY

BITS = pytest.mark.parametrize('bits', [2, 4, 8])
# Each in one program: run eagerly, each operation would be compiled apart.
quantize_keys, quantize_values = (jax.jit(f, static_argnums=1) for f in (kivi.quantize_keys, kivi.quantize_values))
dequantize = jax.jit(kivi.dequantize, static_argnums=1)
pack_codes, unpack_codes = (jax.jit(f, static_argnums=1) for f in (kivi.pack_codes, kivi.unpack_codes))
everything_of = jax.jit(slots.everything_of)
window_of = jax.jit(slots.window_of, static_argnames=('initial', 'recent', 'room'))
KINDS = {'keys': quantize_keys, 'values': quantize_values}
pack = jax.jit(packed.pack, static_argnums=2)
extend, attend = jax.jit(slots.extend), jax.jit(attend_densely)
read_codes = jax.jit(packed.Packed.read)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read(packed):
  """Returns keys and values [B, K, C, H] as attention takes them, and the positions of the slots."""
  R = packed.config.residual
  keys, values = np.array(dequantize(packed.keys)), np.array(dequantize(packed.values))
  key_tail, value_tail, positions = map(np.asarray, (packed.key_tail, packed.value_tail, packed.positions))
  for row, n in enumerate((positions != EMPTY).sum(axis=1).tolist()):
    keys[row, :, n // R * R : n // R * R + R] = key_tail[row]
    for slot in range(max(0, n - R), n):
      values[row, :, slot] = value_tail[row, :, slot % (R + 1)]
  return keys, values, positions


def by_hand(x_BKSH, config, kind):
  """Returns (codes, x again, scale), group by group in NumPy."""
  x = np.asarray(x_BKSH, np.float32)
  x = x if kind == 'values' else x.swapaxes(2, 3)
  groups = x.reshape(-1, config.group)
  codes, again, scales = np.zeros_like(groups), np.zeros_like(groups), np.zeros_like(groups)
  for i, g in enumerate(groups):
    low = np.float16(g.min())
    scale = np.float16((g.max() - g.min()) / (2**config.bits - 1)) or np.float16(1)
    codes[i] = np.clip(np.round((g - np.float32(low)) / np.float32(scale)), 0, 2**config.bits - 1)
    again[i], scales[i] = codes[i] * np.float32(scale) + np.float32(low), scale
  back = lambda y: y.reshape(x.shape) if kind == 'values' else y.reshape(x.shape).swapaxes(2, 3)
  return back(codes), back(again), back(scales)


@BITS
def test_packing_is_undone_and_fills_its_bytes(bits):
  codes = np.random.default_rng(0).integers(0, 2**bits, (2, 3, 5, 16), np.uint8)
  packed = pack_codes(codes, bits)
  assert packed.shape == (2, 3, 5, 16 * bits // 8) and packed.dtype == jnp.uint8
  np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


@BITS
@pytest.mark.parametrize('group, H', [(16, 16), (8, 32), (32, 32)])
def test_products_with_codes_are_those_with_the_numbers(bits, group, H):
  config = KiviConfig(bits, group, group)
  keys, values = (kind(normal(2, 3, 64, H, seed=i), config) for i, kind in enumerate((quantize_keys, quantize_values)))
  q, w = normal(2, 3, 4, H, seed=2), np.exp(normal(2, 3, 4, 64, seed=3))
  w /= w.sum(-1, keepdims=True)
  expected = q @ np.asarray(dequantize(keys)).swapaxes(2, 3), w @ np.asarray(dequantize(values))
  for actual, e in zip((jax.jit(kivi.score_codes)(q, keys), jax.jit(kivi.mix_codes)(w, values)), expected):
    np.testing.assert_allclose(actual, e, rtol=0, atol=1e-5 * np.abs(e).max())


@BITS
@pytest.mark.parametrize('kind', KINDS)
def test_codes_are_the_formulas_and_err_by_half_a_step(bits, kind):
  config = KiviConfig(bits, group=16, residual=16)
  x = normal(2, 3, 64, 32)
  quantized = KINDS[kind](x, config)
  codes, again, scale = by_hand(x, config, kind)
  found, meant = np.asarray(unpack_codes(quantized.by_token.codes, bits)), np.asarray(dequantize(quantized))
  # A scale that lies between two float16 numbers may be rounded to either.
  assert (found != codes).mean() < 1e-3
  assert (abs(meant - again) <= 1.01 * scale).all()
  assert (abs(meant - again) > 1e-3).mean() < 1e-3
  # The minimum and the largest code are rounded to 11 bits.
  assert (abs(meant - x) <= scale / 2 + 2**-11 * 8).all()
  assert quantized.nbytes == x.size * (bits + 32 / 16) / 8


@pytest.mark.parametrize('kind', KINDS)
def test_an_outlier_disturbs_its_own_group_alone(kind):
  config = KiviConfig(4, group=8, residual=8)
  x = normal(1, 1, 32, 16)
  outlier = x.copy()
  outlier[0, 0, 10, 3] = 100.0
  meant = [np.asarray(dequantize(KINDS[kind](y, config))) for y in (outlier, x)]
  rows, columns = np.nonzero((meant[0] != meant[1])[0, 0])
  if kind == 'keys':
    assert set(rows) <= set(range(8, 16)) and set(columns) == {3} and len(rows) >= 7
  else:
    assert set(rows) == {10} and set(columns) <= set(range(8)) and len(columns) >= 7


def test_constant_groups_and_half_precision_stay_finite():
  config = KiviConfig()
  constant, huge = np.full((1, 1, 32, 32), 2.5, np.float32), normal(1, 1, 32, 32) * np.float32(1e6)
  np.testing.assert_array_equal(dequantize(quantize_keys(constant, config)), 2.5)
  low = normal(1, 2, 32, 32).astype(jnp.bfloat16)
  again = dequantize(quantize_values(low, config), jnp.bfloat16)
  assert again.dtype == jnp.bfloat16 and abs(np.asarray(again, np.float32) - low.astype(np.float32)).max() < 0.3
  assert np.isfinite(dequantize(quantize_keys(huge, config))).all()


def test_four_bits_with_groups_of_32_take_five_bits():
  x = normal(2, 3, 64, 64)
  assert quantize_keys(x, KiviConfig()).nbytes == quantize_values(x, KiviConfig()).nbytes == x.size * 5 // 8


@pytest.mark.parametrize('initial, recent', [(0, None), (2, 12)])
def test_appending_token_by_token_equals_packing_at_once(initial, recent):
  config = KiviConfig(4, group=8, residual=8)
  lengths = np.array([37, 20, 3], np.int32)
  k, v = normal(3, 2, 64, 8), normal(3, 2, 64, 8, seed=1)
  if recent is None:
    memory = everything_of(k, v, lengths)
  else:
    memory = window_of(k, v, lengths, initial=initial, recent=recent, room=20)
  packed = pack(memory, lengths, config)
  step = jax.jit(lambda memory, k, v, positions: memory.appended(k, v, positions))
  new = lambda x, t: np.take_along_axis(x, (lengths + t)[:, None, None, None], axis=2).swapaxes(1, 2)
  for t in range(20):
    packed = step(packed, new(k, t), new(v, t), (lengths + t)[:, None])
    if t in (3, 11):  # A row that is done reads its last token again and again.
      packed = step(packed, new(k, t), new(v, t), (lengths + t)[:, None])
  # At once: the same tokens, the forgotten ones left out.
  evicted = np.asarray(memory.evicted)
  filled, slot_C = lengths + 20 - evicted, np.arange(memory.keys.shape[2], dtype=np.int32)
  slot_BC = slot_C + np.where(slot_C < initial, 0, evicted[:, None])
  positions = np.where(slot_C < filled[:, None], slot_BC, EMPTY)
  kept = lambda x: np.take_along_axis(x, np.minimum(slot_BC, 63)[:, None, :, None], axis=2)
  at_once = pack(memory.replace(keys=kept(k), values=kept(v), positions=positions), lengths + 20, config)
  np.testing.assert_array_equal(packed.positions, at_once.positions)
  for x, a, b in zip((k, v), read(packed), read(at_once)):
    for row, n in enumerate(filled.tolist()):
      np.testing.assert_array_equal(a[row, :, :n], b[row, :, :n])
      np.testing.assert_array_equal(a[row, :, n // 8 * 8 : n], kept(x)[row, :, n // 8 * 8 : n])


def test_what_is_newer_than_the_residual_is_exact():
  config = KiviConfig(2, group=8, residual=8)
  k, v = normal(2, 2, 32, 8), normal(2, 2, 32, 8, seed=1)
  lengths = np.array([30, 7])
  keys, values, seen = read(pack(everything_of(k, v, lengths), lengths, config))
  np.testing.assert_array_equal(keys[0, :, 24:30], k[0, :, 24:30])
  np.testing.assert_array_equal(values[0, :, 22:30], v[0, :, 22:30])
  np.testing.assert_array_equal(keys[1, :, :7], k[1, :, :7])
  np.testing.assert_array_equal(values[1, :, :7], v[1, :, :7])
  assert abs(keys[0, :, :24] - k[0, :, :24]).max() > 0.1 and abs(values[0, :, :22] - v[0, :, :22]).max() > 0.1
  assert [int((row != EMPTY).sum()) for row in seen] == [30, 7]


@pytest.mark.parametrize('T', [1, 5])
@pytest.mark.parametrize('bits, group', [(2, 8), (4, 8), (8, 8), (2, 2)])
def test_attention_over_codes_is_that_over_what_they_mean(T, bits, group):
  config, rule = KiviConfig(bits, group=group, residual=8), layer_rule(TINY, 0)
  lengths = np.array([37, 20], np.int32)
  k, v = normal(2, 2, 64, 8), normal(2, 2, 64, 8, seed=1)
  q, new_k, new_v = normal(2, T, 4, 8, seed=2), normal(2, T, 2, 8, seed=3), normal(2, T, 2, 8, seed=4)
  positions = lengths[:, None] + np.arange(T, dtype=np.int32)
  packed = pack(everything_of(k, v, lengths), lengths, config)
  out, after = extend(packed, q, new_k, new_v, positions, rule)
  if T == 1:
    keys, values, seen = read(after)
  else:
    keys, values, seen = read(packed)
    keys = np.concatenate([keys, new_k.swapaxes(1, 2)], axis=2)
    values = np.concatenate([values, new_v.swapaxes(1, 2)], axis=2)
    seen = np.concatenate([seen, positions], axis=1)
  np.testing.assert_allclose(out, attend(q, keys, values, positions, seen, rule), atol=1e-5)
  one_by_one = packed
  for t in range(T):
    new = (x[:, t : t + 1] for x in (q, new_k, new_v, positions))
    one_by_one = extend(one_by_one, *new, rule)[1]
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(one_by_one)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('lengths', [None, (35, 18)])
def test_a_read_of_codes_anywhere_is_that_of_what_they_mean(lengths):
  """Queries before, among and behind the tokens that are there, which are as many as before."""
  config, rule, filled = KiviConfig(4, group=8, residual=8), layer_rule(TINY, 0), np.array([37, 20])
  memory = pack(everything_of(normal(2, 2, 64, 8), normal(2, 2, 64, 8, seed=1), filled), filled, config)
  q, positions = normal(2, 4, 4, 8, seed=2), np.array([[12, 36, 0, 50], [19, 3, 25, 18]])
  counted = None if lengths is None else np.array(lengths)
  keys, values, seen = read(memory)
  mask = None if lengths is None else np.broadcast_to((seen < counted[:, None])[:, None], (2, 4, seen.shape[1]))
  expected = attend(q, keys, values, positions, seen, rule, mask)
  np.testing.assert_allclose(read_codes(memory, q, positions, rule, None, counted), expected, atol=1e-5)


@pytest.mark.parametrize(
  'bad, message',
  [
    ({'bits': 3}, 'bits=3 is not 2, 4 or 8'),
    ({'group': 0}, 'must be at least 1'),
    ({'group': 16, 'residual': 24}, 'residual=24 is not a multiple of self.group=16'),
  ],
)
def test_settings_without_sense_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    KiviConfig(**bad)


def test_what_cannot_be_packed_is_refused():
  k, lengths = normal(1, 2, 32, 8), np.array([20])
  with pytest.raises(ValueError, match='group=32 does not divide the head size 8'):
    pack(everything_of(k, k, lengths), lengths, KiviConfig())
  ring = window_of(k, k, lengths, initial=2, recent=8, room=None)
  with pytest.raises(ValueError, match="growth='append'"):
    pack(ring, lengths, KiviConfig(4, 8, 8))
