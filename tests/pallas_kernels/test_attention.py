"""Properties of `flash_attention`; test_attention_exact.py holds its numbers against float64. The kernels are interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.attend import attend
from jaxlm.attention.distance import alibi_slopes
from jaxlm.attention.rule import AttentionRule
from pallas_kernels import attention_xla, flash_attention
from pallas_kernels.attention import attend_forward
from pallas_kernels.attention_calls import Spec
from tests.pallas_kernels import dense

pytestmark = pytest.mark.usefixtures('compile_quickly')

BLOCKS = {'block_q': 32, 'block_k': 64, 'interpret': True}
FORMS = {'tpu': BLOCKS, 'gpu': {**BLOCKS, 'interpret': 'gpu'}, 'xla': {'implementation': 'xla'}}
NAMES = ('out', 'dq', 'dk', 'dv')
SLOPES = {n: tuple(np.linspace(0.02, 0.3, n)) for n in (2, 3, 4)}


def inputs(T, S, N, K, H, dtype=np.float32, B=2):
  shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
  rng = np.random.default_rng(T + S + N + H)
  return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def attended(q, k, v, alibi_slopes=None, **options):
  """Returns what the kernel makes of these, in one program with the operations around it."""
  return np.asarray(jax.jit(functools.partial(flash_attention, **options))(q, k, v, alibi_slopes=alibi_slopes))


def all_close(actual, expected, tolerance):
  """Relative to the largest entry."""
  for name, a, e in zip(NAMES, actual, expected):
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max(), err_msg=name)


def kernel_and_dense(operation, **options):
  slopes = options.pop('alibi_slopes', None)
  options |= {'operation': operation, 'alibi_slopes': None if slopes is None else np.asarray(slopes, np.float32)}
  return functools.partial(flash_attention, **options, **BLOCKS), functools.partial(dense.attention, **options)


@pytest.mark.parametrize('options', [{'operation': 'sigmoid'}, {'prefix': 4, 'softcap': 9.0, 'slot_logit': np.ones(8)}])
def test_the_xla_form_never_holds_all_weights(options):
  x = jax.ShapeDtypeStruct((1, 8192, 8, 64), jnp.bfloat16)
  grad = jax.grad(lambda *qkv: flash_attention(*qkv, **options).astype(jnp.float32).sum(), argnums=(0, 1, 2))
  largest = max(int(np.prod(s or (1,))) for s in shapes_in(jax.make_jaxpr(grad)(x, x, x).jaxpr))
  assert largest <= attention_xla.PIECE_WEIGHTS < 8 * 8192**2 / 16


def shapes_in(jaxpr):
  """Yields the shapes of all values of a program, with those of its inner programs."""
  for equation in jaxpr.eqns:
    yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, 'shape'))
    for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr')):
      if hasattr(inner := getattr(inner, 'jaxpr', inner), 'eqns'):
        yield from shapes_in(inner)


@pytest.mark.slow
@pytest.mark.parametrize('operation', ['sigmoid', 'softmax'])
def test_float32_matches_dense_over_many_blocks(operation):
  arrays = inputs(1024, 1024, 2, 1, 64, B=1)
  kernel, reference = kernel_and_dense(operation, bias=-6.9, window=600)
  all_close(dense.with_gradients(kernel, *arrays), dense.with_gradients(reference, *arrays), 1e-5)


@pytest.mark.parametrize(
  'operation, slot',
  [
    ('softmax', {'slot_logit': (4,)}),
    ('softmax', {'slot_key': (2, 32), 'slot_value': (2, 32)}),
    ('sigmoid', {'slot_key': (2, 32), 'slot_value': (2, 32)}),
  ],
)
def test_matches_the_models_attention(operation, slot):
  q, k, v, dout = inputs(65, 65, 4, 2, 32)
  slot = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in slot.items()}
  rule = AttentionRule(operation, scale=0.2, window=9, prefix=3, softcap=1.5, offset=0.5, position='alibi')
  positions = np.arange(65)[None]
  expected = lambda q, k, v, slot: attend(
    q, k.swapaxes(1, 2), v.swapaxes(1, 2), positions, positions, rule.replace(**slot)
  )
  slopes = np.asarray(alibi_slopes(4), np.float32)
  options = {'window': 9, 'prefix': 3, 'scale': 0.2, 'softcap': 1.5, 'bias': 0.5, 'alibi_slopes': slopes}
  actual = lambda q, k, v, slot: flash_attention(q, k, v, operation=operation, **options, **slot)
  results = [
    jax.jit(lambda *arrays, of=of: jax.tree.leaves(dense.gradients(of, arrays, dout)))(q, k, v, slot)
    for of in (actual, expected)
  ]
  for a, e in zip(*results):
    np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * np.abs(e).max() + 1e-7)


def test_sigmoid_keeps_queries_keys_and_values_only():
  q, k, v, _ = inputs(32, 32, 4, 2, 32)
  shapes = lambda tree: sorted(x.shape for x in jax.tree.leaves(tree))

  def kept(**options):
    attend = functools.partial(flash_attention, **options, **BLOCKS)
    return shapes(jax.eval_shape(lambda *qkv: jax.vjp(attend, *qkv)[1], q, k, v))

  assert kept(operation='sigmoid') == shapes((q, k, v))
  assert kept(operation='sigmoid', alibi_slopes=np.ones(4)) == shapes((q, k, v, np.ones((2, 4))))
  assert kept(operation='softmax') == shapes((q, k, v, q, np.ones((2, 4, 32))))
  # The slot is kept as one logit per query.
  assert kept(slot_logit=jnp.ones(4)) == shapes((q, k, v, q, np.ones((2, 4, 32)), np.ones((2, 4, 32))))


def test_the_forward_rule_keeps_its_own_arguments():
  q, k, v, _ = map(jnp.asarray, inputs(32, 32, 4, 2, 32))
  spec = Spec('sigmoid', causal=True, window=None, scale=1.0, bias=0.0, alibi=False, block_q=32, block_k=64)
  _, residuals = attend_forward(q, k, v, None, None, None, None, spec, 'interpret')
  leaves = jax.tree.leaves(residuals)
  assert len(leaves) == 3 and leaves[0] is q and leaves[1] is k and leaves[2] is v


@functools.cache
def last_rows(rows, operation='sigmoid'):
  """Causal ALiBi attention of the last `rows` of 97 queries, through the kernel."""
  q, k, v, _ = inputs(97, 97, 3, 1, 32)
  return attended(q[:, -rows:], k, v, np.asarray(SLOPES[3]), operation=operation, **BLOCKS)


def column_only(operation, T, S):
  """ALiBi as softmax kernels may shorten it: slope * column, which leaves out a constant of each row."""
  q, k, v, _ = inputs(97, 97, 3, 1, 32)
  shortened = np.asarray(SLOPES[3], np.float32)[:, None, None] * (S - 1 - np.arange(S, dtype=np.float32))
  penalty = np.broadcast_to(shortened, (2, 3, T, S))
  visible = jax.jit(lambda: dense.visible(T, S, True, None))()
  return np.asarray(dense.from_penalty(q[:, -T:], k, v, penalty, visible, operation))


def test_alibi_follows_the_row_offset():
  all_close([last_rows(40)], [last_rows(97)[:, -40:]], 1e-5)


@pytest.mark.parametrize('rows', [97, 40])
def test_alibi_by_column_alone_is_wrong_for_sigmoid(rows):
  difference = np.abs(last_rows(rows) - column_only('sigmoid', rows, 97)).max()
  assert difference > 0.05 * np.abs(last_rows(rows)).max()


def test_alibi_by_column_alone_is_right_for_softmax():
  all_close([last_rows(40, 'softmax')], [column_only('softmax', 40, 97)], 1e-5)


def test_slopes_may_differ_by_row_of_the_batch():
  q, k, v, _ = inputs(40, 40, 2, 1, 32)
  options = {'operation': 'sigmoid', 'alibi_slopes': np.asarray([[0.0, 0.1], [0.2, 0.3]], np.float32)}
  all_close([attended(q, k, v, **options, **BLOCKS)], [dense.attention(q, k, v, **options)], 1e-5)


def test_padded_keys_weigh_nothing():
  # Zero queries and no bias: every visible key weighs sigmoid(0) = 1/2, and so would a key of padding.
  q, k, v = (np.full((1, 70, n, 32), x, np.float32) for n, x in ((2, 0), (1, 1), (1, 1)))
  out = attended(q, k, v, operation='sigmoid', causal=False, **BLOCKS)
  np.testing.assert_array_equal(out, np.full(out.shape, 35.0))


@pytest.mark.parametrize('window', [65, 2**31 - 1, 2**31, 2**40])
@pytest.mark.parametrize('how', FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
  'options', [{}, {'causal': False, 'operation': 'sigmoid', 'prefix': 3}], ids=['softmax', 'sigmoid']
)
def test_a_window_that_reaches_all_keys_is_none(options, how, window):
  arrays = inputs(40, 65, 2, 1, 16)
  attend = functools.partial(flash_attention, **options, **how)
  plain = dense.with_gradients(attend, *arrays)
  all_close(dense.with_gradients(functools.partial(attend, window=window), *arrays), plain, 0)


@pytest.mark.parametrize('how', [BLOCKS, {'implementation': 'xla'}], ids=['kernel', 'xla'])
@pytest.mark.parametrize('operation', ['sigmoid', 'softmax'])
def test_rows_that_see_nothing_are_zero_and_send_no_gradient(operation, how):
  q, k, v, dout = inputs(97, 40, 2, 1, 32)
  kernel = functools.partial(flash_attention, operation=operation, bias=3.0, **how)
  out, dq, *_ = results = jax.device_get(dense.with_gradients(kernel, q, k, v, dout))
  assert all(np.isfinite(x).all() for x in results)
  all_close([out], [dense.attention(q, k, v, operation, bias=3.0)], 1e-5)
  assert not out[:, :57].any() and not dq[:, :57].any()
  assert out[:, 57:].any(axis=(2, 3)).all()


def test_float16_and_default_blocks():
  arrays = inputs(60, 60, 2, 1, 32, jnp.float16)[:3]
  actual = attended(*arrays, operation='sigmoid', interpret=True)
  assert actual.dtype == jnp.float16
  all_close([actual], [dense.attention(*(x.astype(jnp.float32) for x in arrays), operation='sigmoid')], 2e-3)


def test_maps_over_an_axis_and_over_devices():
  q, k, v, _ = inputs(33, 33, 2, 1, 32)
  one = lambda q, k, v: flash_attention(q[None], k[None], v[None], **BLOCKS)[0]
  actual = jax.pmap(jax.vmap(one))(*(x[:, None] for x in (q, k, v)))
  all_close([np.asarray(actual)[:, 0]], [dense.attention(q, k, v)], 1e-5)


@pytest.mark.parametrize(
  'how', [pytest.param(BLOCKS, marks=pytest.mark.slow), {'implementation': 'xla'}], ids=['kernel', 'xla']
)
@pytest.mark.parametrize(
  'operation, options', [('softmax', {}), ('sigmoid', {'window': 30, 'alibi_slopes': np.ones(4) / 9})]
)
def test_segments_are_sequences_of_their_own(operation, options, how):
  lengths = 40, 9, 51
  q, k, v, dout = inputs(sum(lengths), sum(lengths), 4, 2, 32)
  segments = np.broadcast_to(np.repeat(np.arange(3, dtype=np.int32), lengths), q.shape[:2])
  attend = functools.partial(flash_attention, operation=operation, **options, **how)
  whole = jax.device_get(dense.with_gradients(functools.partial(attend, segments=segments), q, k, v, dout))
  for start, stop in ((0, 40), (40, 49), (49, 100)):
    apart = dense.with_gradients(attend, *(x[:, start:stop] for x in (q, k, v, dout)))
    all_close([x[:, start:stop] for x in whole], apart, 1e-5)


@pytest.mark.parametrize('kernels', [True, pytest.param('gpu', marks=pytest.mark.slow)], ids=['tpu', 'gpu'])
def test_blocks_of_other_segments_are_not_even_read(kernels):
  """A hidden pair has the weight 0, and 0 times nan is nan; blocks that are left out have no part in the sum."""
  q, k, v, dout = inputs(64, 64, 4, 2, 32)
  segments = np.broadcast_to(np.repeat(np.int32([1, 2]), 32), (len(q), 64))
  broken = np.where(np.arange(64)[:, None, None] < 32, np.float32('nan'), np.float32(1))
  blocks = {'block_q': 32, 'block_k': 32, 'interpret': kernels}
  gradients = jax.jit(
    functools.partial(
      dense.with_gradients, functools.partial(flash_attention, segments=segments, causal=False, **blocks)
    )
  )
  sound, found = gradients(q, k, v, dout), gradients(*(x * broken for x in (q, k, v, dout)))
  all_close([x[:, 32:] for x in found], [x[:, 32:] for x in sound], 0)
  assert np.isnan(found[0][:, :32]).all()


def test_a_negative_segment_is_shared_by_all():
  q, k, v, _ = inputs(40, 40, 2, 1, 32)
  segments = np.repeat(np.int32([-1, 1, 2]), (1, 19, 20))
  out = attended(q, k, v, segments=np.stack([segments] * 2), causal=False, **BLOCKS)
  at = {1: np.r_[0:20], 2: np.r_[0, 20:40], -1: np.r_[0:40]}
  for number, seen in at.items():
    expected = dense.attention(q[:, segments == number], k[:, seen], v[:, seen], causal=False)
    all_close([out[:, segments == number]], [expected], 1e-5)


@pytest.mark.parametrize(
  'how', [BLOCKS, {**BLOCKS, 'interpret': 'gpu'}, {'implementation': 'xla'}], ids=['tpu', 'gpu', 'xla']
)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint32, np.int64])
def test_segments_may_be_integers_of_any_size(how, dtype):
  q, k, v, _ = inputs(40, 40, 2, 1, 32)
  segments = np.stack([np.repeat(np.int32([0, 1, 100]), (1, 19, 20))] * 2)
  expected = dense.attention(q, k, v, segments=segments)
  all_close([attended(q, k, v, segments=segments.astype(dtype), **how)], [expected], 1e-5)


def test_a_slot_alone_has_all_the_weight():
  """The first queries are before all keys."""
  q, k, v, dout = inputs(60, 40, 2, 1, 32)
  key, value = np.random.default_rng(0).normal(size=(2, 1, 32)).astype(np.float32)
  out, _, _, _, _, dvalue = jax.jit(
    lambda *a: dense.gradients(lambda q, k, v, key, value: flash_attention(
      q, k, v, slot_key=key, slot_value=value, **BLOCKS), a, dout)
  )(q, k, v, key, value)  # fmt: skip
  np.testing.assert_allclose(out[:, :20], np.broadcast_to(value, (2, 20, 2, 32)), rtol=1e-6)
  assert np.isfinite(dvalue).all()


def test_a_very_low_slot_changes_nothing():
  q, k, v, _ = inputs(40, 40, 2, 1, 32)
  plain, low = attended(q, k, v, **BLOCKS), attended(q, k, v, slot_logit=jnp.full(2, -jnp.inf), **BLOCKS)
  np.testing.assert_array_equal(plain, low)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'operation': 'sigmod'}, "operation='sigmod' is not one of softmax, sigmoid"),
    ({'implementation': 'triton'}, "implementation='triton' is not one of pallas, xla, cudnn"),
    ({'implementation': 'cudnn'}, 'not float32'),
    ({'segments': jnp.ones((2, 7), jnp.int32)}, r'segments \(2, 7\): expected \[2, 8\]'),
    ({'segments': jnp.ones((2, 8))}, 'segments float32: expected integers'),
    ({'segments': np.ones((2, 8), bool)}, 'segments bool: expected integers'),
    ({'implementation': 'cudnn', 'prefix': 2}, 'no prefix, softcap or slot'),
    ({'implementation': 'cudnn', 'softcap': 2.0}, 'no prefix, softcap or slot'),
    ({'implementation': 'cudnn', 'slot_logit': np.ones(4)}, 'no prefix, softcap or slot'),
    ({'interpret': 'cpu'}, "interpret='cpu' must be True"),
    ({'window': 0}, 'window=0'),
    ({'prefix': -1}, r'prefix=-1 must be within 0 .. 8'),
    ({'prefix': 9}, r'prefix=9 must be within 0 .. 8'),
    ({'softcap': 0.0}, 'softcap=0.0 must be above 0'),
    ({'softcap': float('nan')}, 'softcap=nan must be above 0'),
    ({'slot_logit': np.ones(2)}, r'slot_logit \(2,\): expected \[4\]'),
    ({'slot_key': np.ones((4, 16))}, r'slot_key \(4, 16\): expected \[2, 16\]'),
    ({'slot_key': np.ones((2, 16)), 'slot_value': np.ones(16)}, r'slot_value \(16,\): expected \[2, 16\]'),
    ({'slot_value': np.ones((2, 16))}, 'slot_value needs slot_key'),
    ({'slot_logit': np.ones(4), 'slot_key': np.ones((2, 16))}, 'pass one of them'),
    ({'block_q': 48}, 'block_q=48'),
    ({'block_k': 8}, 'block_k=8'),
    ({'alibi_slopes': np.ones(3)}, r'expected \[4\] or \[2, 4\]'),
    ({'k': jnp.ones((2, 8, 3, 16))}, 'expected q'),
    ({'q': jnp.ones((2, 8, 3, 16))}, '3 query heads'),
    ({'q': jnp.ones((2, 8, 4, 32))}, 'head dim must agree'),
    ({'q': jnp.ones((2, 0, 4, 16))}, 'may be 0'),
    ({'q': jnp.ones((2, 8, 4, 16), jnp.bfloat16)}, 'expected one dtype'),
  ],
)
def test_wrong_arguments_are_named(change, message):
  arguments = {'q': jnp.ones((2, 8, 4, 16)), 'k': jnp.ones((2, 8, 2, 16)), 'v': jnp.ones((2, 8, 2, 16))} | change
  with pytest.raises(ValueError, match=message):
    flash_attention(**arguments)
