"""Sums of attention weights, by the interpreted kernels and by XLA, against maps in float64. Blocks and pieces are small."""

import functools
import importlib

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import column_mass, column_mass_xla
from tests.pallas_kernels.lowering import CALLS, compiled_for_tpu, lowered
from tests.pallas_kernels.test_attention import shapes_in

pytestmark = pytest.mark.usefixtures('compile_quickly')

BLOCKS = {'block_q': 16, 'block_k': 32, 'interpret': True}
HOW = {'kernel': BLOCKS, 'xla': {'implementation': 'xla'}}
NAMES = ('columns', 'proxy', 'rows')
SLOPES = {n: np.linspace(0.02, 0.3, n) for n in (2, 3, 4)}
# (T, S), heads, key heads, head dim, options
CASES = {
  'causal': ((50, 50), 4, 2, 24, {}),
  'one query': ((1, 50), 2, 1, 16, {'bias': -1.0}),
  'one token': ((1, 1), 2, 2, 8, {'slot': True}),
  'window, alibi, slot': ((64, 64), 3, 1, 8, {'window': 20, 'alibi_slopes': SLOPES[3], 'slot': True}),
  'later queries, softcap, bias': ((33, 70), 4, 1, 16, {'softcap': 2.0, 'bias': -1.5, 'factors': True}),
  'more queries than keys': ((70, 33), 2, 2, 16, {'scale': 0.7, 'factors': True}),
  'both sides': ((40, 55), 2, 1, 16, {'causal': False, 'alibi_slopes': SLOPES[2]}),
  'both sides, window': ((55, 55), 4, 2, 16, {'causal': False, 'window': 9, 'slot': True, 'factors': True}),
}


def inputs(lengths, N, K, H, options, dtype=np.float32, B=2):
  """Returns q, k and the options with their arrays."""
  (T, S), rng, options = lengths, np.random.default_rng(sum(lengths)), dict(options)
  q, k = (2 * rng.normal(size=(B, *shape)).astype(dtype) for shape in ((T, N, H), (S, K, H)))
  if options.pop('slot', False):
    options['slot_logits'] = rng.normal(size=(B, N, T)).astype(np.float32)
  if options.pop('factors', False):
    options['factors'] = (rng.random((B, T)) > 0.3).astype(np.float32) * rng.random((B, T)).astype(np.float32)
  return q, k, options


def in_float64(
  q, k, *, operation, causal=True, window=None, scale=None, softcap=None, bias=0.0, alibi_slopes=None, slot_logits=None,
  factors=None,
):  # fmt: skip
  """The definition, with whole maps [B, N, T, S], or S + 1 with a slot."""
  (_, T, N, H), S = q.shape, k.shape[1]
  q, k = np.asarray(q, np.float64), np.repeat(np.asarray(k, np.float64), N // k.shape[2], axis=2)
  logits = np.einsum('BTNH,BSNH->BNTS', q, k) * (H**-0.5 if scale is None else scale)
  logits = (logits if softcap is None else softcap * np.tanh(logits / softcap)) + bias
  distance = np.arange(T)[:, None] + S - T - np.arange(S)
  if alibi_slopes is not None:
    logits = logits - np.asarray(alibi_slopes)[:, None, None] * abs(distance)
  visible = np.broadcast_to(distance >= 0 if causal else True, distance.shape)
  visible = np.broadcast_to(visible & (abs(distance) < (window or T + S)), logits.shape)
  if slot_logits is not None:
    logits = np.concatenate([np.asarray(slot_logits, np.float64)[..., None], logits], axis=-1)
    visible = np.concatenate([np.ones_like(visible[..., :1]), visible], axis=-1)
  similarity = np.where(visible, np.exp(logits) if operation == 'softmax' else 1 / (1 + np.exp(-logits)), 0.0)
  rows = similarity.sum(axis=-1)
  if operation == 'softmax':
    similarity = similarity / np.where(rows, rows, 1.0)[..., None]
    rows = (rows > 0).astype(float)
  f = np.ones(q.shape[:2]) if factors is None else np.asarray(factors, np.float64)
  f = f[:, None, :, None]
  return (f * similarity).sum(axis=2), (f * similarity / (rows[..., None] + 1e-8)).sum(axis=2), rows


def all_close(actual, expected, tolerance):
  """Relative to the largest entry."""
  for name, a, e in zip(NAMES, actual, expected):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(abs(e).max(), 1e-3), err_msg=name)


def summed(q, k, options, **how):
  """Arrays are arguments, so that cases of one shape share a program."""
  arrays = {name: options.pop(name) for name in ('alibi_slopes', 'slot_logits', 'factors') if name in options}
  return jax.jit(functools.partial(column_mass, **options, **how))(q, k, **arrays)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  """Takes 16 queries at a time."""
  monkeypatch.setattr(column_mass_xla, 'PIECE_WEIGHTS', 1)


@pytest.mark.parametrize('how', HOW)
class TestEachForm:
  @pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
  @pytest.mark.parametrize('name', CASES)
  def test_equals_sums_of_maps_in_float64(self, name, operation, how):
    q, k, options = inputs(*CASES[name])
    expected = in_float64(q, k, operation=operation, **options)
    all_close(summed(q, k, {**options, 'operation': operation}, **HOW[how]), expected, 3e-6)

  @pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
  def test_half_precision_inputs_lose_nothing_but_their_own_digits(self, dtype, how):
    q, k, options = inputs(*CASES['window, alibi, slot'], dtype=dtype)
    expected = in_float64(q, k, operation='softmax', **options)  # Of the rounded inputs.
    all_close(summed(q, k, options, **HOW[how]), expected, 1e-5)

  @pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
  def test_padding_weighs_nothing(self, operation, how):
    # Zero queries: every visible key weighs the same, and so would a key or a query of padding.
    q, k = np.zeros((1, 35, 2, 16), np.float32), np.ones((1, 35, 1, 16), np.float32)
    columns, _, rows = column_mass(q, k, operation=operation, causal=False, **HOW[how])
    weight = {'softmax': 1 / 35, 'sigmoid': 0.5}[operation]
    np.testing.assert_allclose(columns, np.full((1, 2, 35), 35 * weight), rtol=1e-6)
    np.testing.assert_allclose(rows, np.full((1, 2, 35), 35 * weight), rtol=1e-6)

  def test_large_logits_stay_finite(self, how):
    q, k, options = inputs(*CASES['causal'])
    mass = summed(100 * q, k, options, **HOW[how])
    assert all(np.isfinite(x).all() for x in mass)
    np.testing.assert_allclose(mass.columns.sum(axis=-1), np.full((2, 4), 50.0), rtol=1e-5)

  def test_slopes_may_differ_by_row_and_gradients_are_zero(self, how):
    q, k, _ = inputs(*CASES['causal'])
    slopes = np.stack([SLOPES[4], 2 * SLOPES[4]])
    mass = summed(q, k, {'alibi_slopes': slopes}, **HOW[how])
    for row in range(2):
      each = in_float64(q[row : row + 1], k[row : row + 1], operation='softmax', alibi_slopes=slopes[row])
      all_close([x[row : row + 1] for x in mass], each, 3e-6)
    loss = lambda q: column_mass(q, k, **HOW[how]).columns[:, :, 0].sum() + (q**2).sum()
    np.testing.assert_array_equal(jax.grad(loss)(q), 2 * q)


def test_maps_over_an_axis():
  q, k, options = inputs(*CASES['causal'])
  one = lambda q, k: column_mass(q[None], k[None], **BLOCKS)
  actual = [x[:, 0] for x in jax.jit(jax.vmap(one))(q, k)]
  all_close(actual, in_float64(q, k, operation='softmax', **options), 3e-6)


def race_detector():
  """Returns the state of the detector, which has no public name."""
  try:
    return importlib.import_module('jax._src.pallas.mosaic.interpret.interpret_pallas_call').races
  except ImportError:  # jax 0.7
    return importlib.import_module('jax._src.pallas.mosaic.interpret').races


@pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
def test_a_simulated_tpu_finds_no_race_and_no_uninitialised_memory(operation):
  q, k, options = inputs((20, 20), 2, 1, 8, {'slot': True}, B=1)
  how = {**BLOCKS, 'interpret': pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')}
  actual = column_mass(q, k, operation=operation, **options, **how)
  all_close(actual, in_float64(q, k, operation=operation, **options), 3e-6)
  assert not race_detector().races_found


@pytest.mark.parametrize('platform', CALLS)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float16'])
@pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
def test_lowers_without_the_device(platform, dtype, operation):
  q, k = jax.ShapeDtypeStruct((1, 32768, 4, 128), dtype), jax.ShapeDtypeStruct((1, 32768, 2, 128), dtype)
  slot = jax.ShapeDtypeStruct((1, 4, 32768), 'float32')
  mass = lambda q, k, slot, **how: column_mass(
    q, k, operation=operation, window=4000, softcap=30.0, alibi_slopes=jnp.ones(4), slot_logits=slot, **how
  )
  count = lambda **how: lowered(functools.partial(mass, **how), platform, q, k, slot).count(CALLS[platform])
  assert (count(implementation='pallas'), count(implementation='xla')) == (2, 0)
  assert count() == (2 if platform == 'tpu' else 0)


@pytest.mark.slow
@pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
def test_compiles_for_a_tpu(operation):
  q, k = jax.ShapeDtypeStruct((1, 32768, 32, 64), 'bfloat16'), jax.ShapeDtypeStruct((1, 32768, 8, 64), 'bfloat16')
  program = compiled_for_tpu(functools.partial(column_mass, operation=operation), q, k)
  assert program.memory_analysis().temp_size_in_bytes < 32 * 32768**2 / 8


def test_a_cpu_has_no_kernel_to_compile():
  x = jnp.ones((1, 16, 1, 16))
  with pytest.raises(ValueError, match="'pallas' runs on tpu and gpu, and the arrays are on cpu"):
    column_mass(x, x, implementation='pallas')
  with pytest.raises(ValueError, match="'pallas' runs on tpu and gpu, and this program is compiled for cpu"):
    jax.jit(functools.partial(column_mass, implementation='pallas'))(x, x)


@pytest.mark.parametrize('how', ['pallas', 'xla'])
def test_no_array_has_the_size_of_the_weights(how, monkeypatch):
  monkeypatch.undo()
  length, heads = 32768, 8
  q = jax.ShapeDtypeStruct((1, length, heads, 64), jnp.bfloat16)
  mass = functools.partial(column_mass, operation='sigmoid', implementation=how)
  largest = max(int(np.prod(shape or (1,))) for shape in shapes_in(jax.make_jaxpr(mass)(q, q).jaxpr))
  assert largest <= length * heads * 128 < heads * length**2 // 100


@pytest.mark.parametrize('window', [70, 2**31 - 1, 2**40])
@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('causal', [True, False])
def test_a_window_that_reaches_all_keys_is_none(how, window, causal):
  q, k, _ = inputs((33, 70), 2, 1, 16, {})
  plain, wide = (column_mass(q, k, causal=causal, window=w, **HOW[how]) for w in (None, window))
  for p, w in zip(plain, wide):
    np.testing.assert_array_equal(w, p)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'operation': 'sigmod'}, "operation='sigmod' is not one of softmax, sigmoid"),
    ({'implementation': 'cudnn'}, "implementation='cudnn' is not one of pallas, xla"),
    ({'window': 0}, 'window=0'),
    ({'softcap': 0.0}, 'softcap=0.0'),
    ({'block_q': 48}, 'block_q=48'),
    ({'block_k': 8}, 'block_k=8'),
    ({'alibi_slopes': np.ones(3)}, r'expected \[4\] or \[2, 4\]'),
    ({'slot_logits': np.ones((2, 4))}, r'slot_logits \(2, 4\): expected \[2, 4, 8\]'),
    ({'factors': np.ones((2, 7))}, r'factors \(2, 7\): expected \[2, 8\]'),
    ({'k': jnp.ones((2, 8, 3, 16))}, '4 query heads are not a multiple of 3'),
    ({'q': jnp.ones((2, 8, 4, 32))}, 'batch and head dim must agree'),
    ({'q': jnp.ones((2, 0, 4, 16))}, 'may be 0'),
    ({'q': jnp.ones((2, 8, 4, 16), jnp.bfloat16)}, 'expected one dtype'),
  ],
)
def test_wrong_arguments_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    column_mass(**{'q': jnp.ones((2, 8, 4, 16)), 'k': jnp.ones((2, 8, 2, 16))} | change)
