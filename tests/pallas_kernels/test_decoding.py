"""Decode attention, in XLA operations and by the interpreted kernel, against dense attention in float64."""

import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.caches import kivi
from pallas_kernels import decode_attention
from pallas_kernels.decoding import Beside, Slot
from pallas_kernels.decoding_calls import Codes

UNUSED = 1 << 30
HOW = {'xla': {'implementation': 'xla'}, 'kernel': {'interpret': True, 'block_s': 128}}
implementations = pytest.mark.parametrize('how', HOW)


def dense(xp, q, keys, values, seen_BKTS, distance_BKTS, operation, scale, softcap, bias, slopes, slot):
  """Every step in q's dtype, by NumPy or by JAX; the extra key is a column before the others."""
  (B, T, N, H), K, dtype = q.shape, keys.shape[1], q.dtype
  by_head = lambda x_BKTS: xp.repeat(xp.broadcast_to(x_BKTS, (B, K, *x_BKTS.shape[2:])), N // K, axis=1)
  keys, values, seen, distance = map(by_head, (keys, values, seen_BKTS, distance_BKTS))
  logits = xp.einsum('BTNH,BNSH->BNTS', q, keys) * xp.asarray(scale, dtype)
  if softcap is not None:
    logits = softcap * xp.tanh(logits / softcap)
  logits = (logits + bias).astype(dtype)
  if slopes is not None:
    logits = logits - (xp.asarray(slopes)[None, :, None, None] * abs(distance)).astype(dtype)
  if slot is not None:
    column = xp.broadcast_to(xp.asarray(slot.logits).astype(dtype)[None, :, None, None], (B, N, T, 1))
    logits = xp.concatenate([column, logits], axis=-1)
    seen = xp.concatenate([xp.ones((B, N, T, 1), bool), seen], axis=-1)
    own = xp.broadcast_to(xp.repeat(xp.asarray(slot.values), N // K, axis=0)[None, :, None], (B, N, 1, H))
    values = xp.concatenate([own.astype(dtype), values], axis=2)
  if operation == 'sigmoid':
    w = 1 / (1 + xp.exp(-logits))
  else:
    w = xp.exp(logits - xp.where(seen, logits, -1e30).max(axis=-1, keepdims=True))
  w = xp.where(seen, w, xp.zeros((), dtype))
  if operation == 'softmax':
    w = w / xp.maximum(w.sum(axis=-1, keepdims=True), xp.asarray(1e-30, dtype))
  return xp.einsum('BNTS,BNSH->BTNH', w.astype(dtype), values)


def drawn(B, T, N, K, H, S, dtype=np.float32, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(dtype) for shape in ((B, T, N, H), (B, K, S, H), (B, K, S, H))]


def latest(lengths, T):
  """Returns the positions [B, T] of the last T tokens of rows of these lengths; rows that are shorter begin before 0."""
  return np.asarray(lengths, np.int32)[:, None] - T + np.arange(T, dtype=np.int32)


def ring(lengths, size, initial):
  """Returns the position [B, initial + size] of the token in each slot of a ring."""
  slots = np.full((len(lengths), initial + size), UNUSED, np.int32)
  for row, length in zip(slots, lengths):
    for p in range(length):
      row[p if p < initial else initial + (p - initial) % size] = p
  return slots


def by_head(S, K, lengths):
  """Returns positions [B, K, S] of tokens that each head has kept of a longer text, in order."""
  rng = np.random.default_rng(1)
  positions = np.full((len(lengths), K, S), UNUSED, np.int32)
  for row, length in zip(positions, lengths):
    for head in row:
      head[: length // 2] = np.sort(rng.permutation(length)[: length // 2])
  return positions


def tree(B, K, H, parents, first, dtype=np.float32):
  """Returns a drafted tree beside the cache, and the positions of its tokens, which are the queries."""
  M, rng = len(parents), np.random.default_rng(2)
  seen, depth = np.eye(M, dtype=bool), np.zeros(M, np.int32)
  for i, parent in enumerate(parents):
    if parent >= 0:
      seen[i] |= seen[parent]
      depth[i] = depth[parent] + 1
  positions = np.asarray(first, np.int32)[:, None] + depth
  keys, values = (rng.normal(size=(B, K, M, H)).astype(dtype) for _ in range(2))
  return Beside(keys, values, positions, np.broadcast_to(seen, (B, M, M)))


SLOPES = np.linspace(0.01, 0.1, 4).astype(np.float32)
# Name -> sizes B, T, N, K, H, S and the arguments of decode_attention. Chosen so that each feature meets each operation and layout.
CASES = {
  'ragged rows': ((3, 1, 4, 2, 64, 301), {'positions': latest((1, 300, 130), 1)}),
  'sigmoid, odd head': ((2, 5, 4, 2, 80, 200), {'positions': latest((200, 17), 5), 'operation': 'sigmoid', 'bias': -2.0}),
  'a window': ((2, 64, 3, 3, 32, 400), {'positions': latest((400, 280), 64), 'window': 100}),
  'a ring': (
    (2, 2, 4, 1, 64, 132),
    {'positions': latest((300, 90), 2), 'key_positions': ring((300, 90), 128, 4), 'window': 127, 'initial': 4, 'softcap': 3.0},
  ),
  'a tree': (
    (2, 5, 4, 2, 128, 300),
    {'lengths': np.int32([260, 0]), 'beside': tree(2, 2, 128, (-1, 0, 0, 1, 2), (260, 3)), 'window': 150},
  ),
  'heads apart': (
    (2, 1, 4, 2, 96, 260),
    {'positions': latest((500, 300), 1), 'key_positions': by_head(260, 2, (500, 300)), 'alibi_slopes': SLOPES,
     'slot': Slot(np.float32([0.5, 1, 2, 3]), np.ones((2, 96), np.float32))},
  ),
  'sigmoid, an extra key': (
    (1, 3, 4, 1, 256, 150),
    {'positions': latest((150,), 3), 'operation': 'sigmoid', 'alibi_slopes': SLOPES, 'softcap': 2.0, 'scale': 0.1,
     'slot': Slot(np.float32([0.5, 1, -2, 3]), np.ones((1, 256), np.float32))},
  ),
  'all tokens': ((2, 2, 4, 2, 64, 130), {'positions': latest((9, 2), 2), 'lengths': np.int32([130, 40]), 'causal': False}),
}  # fmt: skip


@functools.cache
def case(name, dtype):
  """Returns (arrays, arguments, arguments of `dense`)."""
  (B, T, N, K, H, S), options = CASES[name]
  q, keys, values = drawn(B, T, N, K, H, S, dtype)
  options = dict(options)
  beside = options.get('beside')
  if beside is not None:
    options['positions'] = beside.positions
    options['beside'] = beside = Beside(beside.keys.astype(dtype), beside.values.astype(dtype), *beside[2:])
  positions = options['positions']
  at = options.get('key_positions', np.arange(S, dtype=np.int32)[None])
  at = np.broadcast_to(at if at.ndim == 3 else at[:, None], (B, K, S))
  allowed = np.ones((B, 1, T, S), bool)
  if 'lengths' in options:
    allowed = allowed & (np.arange(S) < options['lengths'][:, None])[:, None, None]
  whole = keys, values
  if beside is not None:
    whole = [np.concatenate(x, axis=2) for x in ((keys, beside.keys), (values, beside.values))]
    at = np.concatenate([at, np.broadcast_to(beside.positions[:, None], (B, K, beside.positions.shape[1]))], axis=2)
    allowed = np.concatenate([allowed, beside.mask[:, None]], axis=3)
  distance = positions[:, None, :, None] - at[:, :, None]
  seen = np.broadcast_to(allowed & (at < UNUSED)[:, :, None], distance.shape)
  if options.get('causal', True):
    seen = seen & (distance >= 0)
  if 'window' in options:
    seen = seen & ((distance < options['window']) | (at[:, :, None] < options.get('initial', 0)))
  rest = {
    'operation': options.get('operation', 'softmax'), 'scale': options.get('scale', H**-0.5), 'bias': options.get('bias', 0.0),
    'softcap': options.get('softcap'), 'slopes': options.get('alibi_slopes'), 'slot': options.get('slot'),
  }  # fmt: skip
  return (
    (q, keys, values),
    options,
    functools.partial(dense, keys=whole[0], values=whole[1], seen_BKTS=seen, distance_BKTS=distance, **rest),
  )


def attended(arrays, options, **more):
  """Returns what decode_attention makes of these, in one program with the operations around it."""
  traced = {name: x for name, x in options.items() if not isinstance(x, (str, int, float))}
  static = {name: x for name, x in options.items() if name not in traced} | more
  return np.asarray(jax.jit(lambda arrays, traced: decode_attention(*arrays, **traced, **static))(arrays, traced))


def exact(q, reference):
  wide = {n: np.asarray(reference.keywords[n], np.float64) for n in ('keys', 'values')}
  return functools.partial(reference, **wide)(np, np.asarray(q, np.float64))


@implementations
class TestValues:
  @pytest.mark.parametrize('name', CASES)
  def test_bfloat16_errs_at_most_twice_as_much_as_dense_bfloat16(self, how, name):
    arrays, options, reference = case(name, jnp.bfloat16)
    actual = attended(arrays, options, **HOW[how])
    low = np.asarray(jax.jit(lambda q: reference(jnp, q))(arrays[0]), np.float32)
    expected = exact(arrays[0], reference)
    assert actual.dtype == jnp.bfloat16
    error, allowed = (np.abs(np.asarray(x, np.float64) - expected).max() for x in (actual, low))
    assert error <= 2 * allowed + 1e-5

  @pytest.mark.parametrize('name', ['ragged rows', 'a ring', 'a tree', 'sigmoid, an extra key'])
  def test_float32_matches_dense(self, how, name):
    arrays, options, reference = case(name, np.float32)
    expected = exact(arrays[0], reference)
    actual = attended(arrays, options, **HOW[how])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())

  def test_rows_may_come_from_a_pool(self, how):
    q, keys, values = drawn(3, 1, 4, 2, 32, 140)
    positions, rows = latest((140, 9, 77), 1), np.int32([2, 0, 2])
    actual = attended((q, keys, values), {'positions': positions, 'rows': rows}, **HOW[how])
    expected = attended((q, keys[rows], values[rows]), {'positions': positions}, implementation='xla')
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)

  @pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
  def test_a_query_that_sees_nothing_gets_zero(self, how, operation):
    arrays = drawn(2, 2, 4, 2, 32, 140)
    options = {'positions': np.int32([[139, -1], [5, 6]]), 'lengths': np.int32([140, 0])}
    out = attended(arrays, options, operation=operation, **HOW[how])
    assert out[0, 0].any() and not out[0, 1].any() and not out[1].any()


def quantised(keys, values, config):
  """Returns keys and values as Codes, and as the numbers that these stand for."""
  made = jax.jit(lambda k, v: (kivi.quantize_keys(k, config), kivi.quantize_values(v, config)))(keys, values)
  numbers = jax.jit(lambda made: [kivi.dequantize(x, keys.dtype) for x in made])(made)
  return [Codes(x.codes, x.scale, x.minimum) for x in made], numbers


# Two groups of tokens in each block, and groups of channels that are smaller than, or cross, the bit fields of the bytes.
@implementations
@pytest.mark.parametrize(
  'bits, group, H, S, dtype',
  [
    (4, 8, 16, 1216, np.float32),  # Several blocks of codes share a block of scales, and the last is not whole.
    (4, 32, 64, 320, jnp.bfloat16),
    (4, 16, 48, 160, np.float32),
    (8, 8, 128, 1216, np.float32),  # The codes of a token fill whole lanes.
    pytest.param(4, 32, 256, 320, jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param(4, 32, 128, 320, jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param(2, 32, 32, 320, np.float32, marks=pytest.mark.slow),
    pytest.param(8, 16, 16, 320, np.float32, marks=pytest.mark.slow),
  ],
)
def test_codes_are_attended_as_the_numbers_that_they_stand_for(how, bits, group, H, S, dtype):
  q, keys, values = drawn(2, 2, 4, 2, H, S, dtype)
  codes, numbers = quantised(keys, values, kivi.KiviConfig(bits, group, group))
  options = {'positions': latest((S, S // 2 + 3), 2)}
  actual = attended((q, *codes), options, **HOW[how])
  expected = attended((q, *numbers), options, implementation='xla')
  tolerance = 1e-5 if dtype == np.float32 else 2e-2
  actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize('options', [{'splits': 3}, {'block_s': 256}, {'splits': 2, 'window': 140}])
def test_splits_and_blocks_do_not_change_the_sums(options):
  arrays, where = drawn(2, 2, 4, 2, 32, 520), {'positions': latest((520, 131), 2)}
  options = {'block_s': 128} | options
  actual = attended(arrays, where, interpret=True, **options)
  expected = attended(arrays, where, implementation='xla', window=options.get('window'))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@implementations
@pytest.mark.parametrize('window', [2**31 - 1, 2**40])
def test_a_window_that_reaches_all_tokens_is_none(how, window):
  arrays, where = drawn(2, 3, 4, 2, 16, 40), {'positions': latest((40, 1), 3)}  # Row 1 has positions below 0.
  plain, wide = (attended(arrays, where, window=w, **HOW[how]) for w in (None, window))
  np.testing.assert_array_equal(wide, plain)


def test_a_block_may_be_larger_than_the_cache():
  arrays, where = drawn(2, 1, 4, 2, 16, 150), {'positions': latest((150, 20), 1)}
  expected = attended(arrays, where, implementation='xla')
  for block in (150, 200):
    np.testing.assert_allclose(attended(arrays, where, interpret=True, block_s=block), expected, rtol=0, atol=1e-5)


def test_the_kernel_reads_nothing_after_the_slots_in_use():
  q, keys, values = drawn(2, 1, 4, 2, 32, 300)
  lengths = np.int32([130, 7])
  for x in (keys, values):
    for row, length in zip(x, lengths):
      row[:, length:] = np.nan
  options = {'positions': lengths[:, None] - 1}
  actual = attended((q, keys, values), options, **HOW['kernel'])
  expected = attended((q, *map(np.nan_to_num, (keys, values))), options, implementation='xla')
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not hasattr(pltpu, 'InterpretParams'), reason='this version of JAX interprets without races')
@pytest.mark.parametrize('name', ['full', pytest.param('4 bits', marks=pytest.mark.slow)])
def test_no_races_and_no_use_of_memory_that_was_not_written(name):
  q, keys, values = drawn(2, 1, 2, 1, 16, 160)
  arrays = (q, keys, values) if name == 'full' else (q, *quantised(keys, values, kivi.KiviConfig(4, 16, 16))[0])
  options = {'positions': latest((160, 9), 1)}
  careful = pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')
  actual = attended(arrays, options, interpret=careful, block_s=128)
  np.testing.assert_allclose(actual, attended(arrays, options, implementation='xla'), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'operation': 'relu'}, "operation='relu' is not one of softmax, sigmoid"),
    ({'implementation': 'triton'}, "implementation='triton' is not one of pallas, xla"),
    ({'window': 0}, 'window=0'),
    ({'window': 4, 'causal': False}, 'needs causal=True'),
    ({'block_s': 4}, 'block_s=4 must be a multiple of 128, or at least the number of slots, 8'),
    ({'splits': 0}, 'splits=0'),
    ({'softcap': 0.0}, 'softcap=0.0 must be above 0'),
    ({'softcap': -2.0}, 'softcap=-2.0 must be above 0'),
    ({'softcap': float('nan')}, 'softcap=nan must be above 0'),
    ({'slot': Slot(np.ones(2))}, r'slot.logits \(2,\): expected \[2, 1, 4\] or \[4\]'),
    ({'slot': Slot(np.ones((1, 1, 4)))}, r'slot.logits \(1, 1, 4\)'),
    ({'slot': Slot(np.ones(4), np.ones((1, 16)))}, r'slot.values \(1, 16\): expected \[2, 16\]'),
    ({'positions': np.zeros((2, 3), np.int32)}, r'positions \(2, 3\): expected \[2, 1\]'),
    ({'lengths': np.zeros(3, np.int32)}, r'lengths \(3,\): expected \[2\]'),
    ({'values': np.ones((2, 2, 9, 16), np.float32)}, 'expected q'),
    ({'keys': Codes(*[np.ones((2, 2, 8, 16))] * 3)}, 'both be Codes'),
    ({'q': np.ones((2, 1, 3, 16), np.float32)}, '3 query heads'),
    ({'q': np.ones((3, 1, 4, 16), np.float32)}, 'give `rows`'),
    ({'implementation': 'pallas', 'q': np.ones((2, 1, 4, 16), np.float16)}, 'not float16'),
  ],
)
def test_wrong_arguments_are_named(change, message):
  arguments = {
    'q': np.ones((2, 1, 4, 16), np.float32), 'keys': np.ones((2, 2, 8, 16), np.float32),
    'values': np.ones((2, 2, 8, 16), np.float32), 'positions': np.zeros((2, 1), np.int32),
  } | change  # fmt: skip
  with pytest.raises(ValueError, match=message):
    decode_attention(**arguments)


@pytest.mark.parametrize('wrong', ['bits', 'scale'])
def test_codes_that_do_not_fit_are_named(wrong):
  q, keys, values = drawn(2, 1, 4, 2, 16, 32)
  (keys, values), _ = quantised(keys, values, kivi.KiviConfig(4, 16, 16))
  if wrong == 'bits':
    keys, values = keys._replace(codes=keys.codes[..., :3]), values._replace(codes=values.codes[:, :, :3])
  else:
    keys = keys._replace(scale=keys.scale[:, :, :, :5])
  with pytest.raises(ValueError, match='2, 4 or 8 bits' if wrong == 'bits' else 'whole number of groups'):
    decode_attention(q, keys, values, positions=np.zeros((2, 1), np.int32))


def test_a_cpu_has_no_kernel_to_compile():
  q, keys, values = drawn(1, 1, 2, 1, 16, 20)
  with pytest.raises(ValueError, match="'pallas' runs on tpu, and the arrays are on cpu"):
    decode_attention(q, keys, values, positions=np.zeros((1, 1), np.int32), implementation='pallas')
  with pytest.raises(ValueError, match="'pallas' runs on tpu, and this program is compiled for cpu"):
    attended((q, keys, values), {'positions': np.zeros((1, 1), np.int32)}, implementation='pallas')
