"""The kernels, interpreted, and the XLA form against dense attention. Blocks and pieces are small, so that each case has several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.attend import attend
from jaxlm.attention.distance import distance_scores
from jaxlm.attention.rule import AttentionRule
from pallas_kernels import attention_xla, flash_attention
from pallas_kernels.attention import attend_forward
from pallas_kernels.attention_calls import Spec
from tests.pallas_kernels import dense

BLOCKS = {'block_q': 32, 'block_k': 64, 'interpret': True}
NAMES = ('out', 'dq', 'dk', 'dv')
SLOPES = {n: tuple(np.linspace(0.02, 0.3, n)) for n in (2, 3, 4)}

# (T, S), heads, key heads, head dim, options. Chosen so that each pair of dimensions meets at least once.
SIGMOID = [
  ((97, 97), 4, 2, 32, {'scale': 0.3}),
  ((128, 128), 3, 1, 64, {'window': 50, 'alibi_slopes': SLOPES[3]}),
  ((97, 97), 3, 1, 128, {'causal': False, 'window': 20, 'bias': 1.5}),
  ((257, 257), 2, 2, 96, {'bias': -5.5, 'alibi_slopes': SLOPES[2]}),
  ((113, 203), 3, 1, 64, {'window': 70, 'bias': -3.0, 'alibi_slopes': SLOPES[3]}),
  ((113, 203), 4, 2, 128, {'causal': False, 'alibi_slopes': SLOPES[4]}),
]  # fmt: skip
SOFTMAX = [
  ((97, 97), 4, 2, 96, {'alibi_slopes': SLOPES[4]}),
  ((113, 203), 3, 1, 64, {'window': 70, 'bias': -3.0}),
  ((128, 128), 2, 2, 128, {'causal': False, 'window': 20}),
]  # fmt: skip
CASES = [('sigmoid', *case) for case in SIGMOID] + [('softmax', *case) for case in SOFTMAX]


@pytest.fixture(autouse=True, scope='module')
def compile_quickly():
  """Compiling is what these tests' time goes to."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


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


@pytest.mark.parametrize('operation, lengths, N, K, H, options', CASES)
def test_bfloat16_errs_at_most_twice_as_much_as_dense_bfloat16(operation, lengths, N, K, H, options):
  arrays = inputs(*lengths, N, K, H, jnp.bfloat16)
  kernel, reference = kernel_and_dense(operation, **options)
  actual = dense.with_gradients(kernel, *arrays)
  low = dense.with_gradients(reference, *arrays)
  exact = dense.with_gradients(reference, *(x.astype(jnp.float32) for x in arrays))
  for name, a, l, e in zip(NAMES, actual, low, exact):
    assert a.dtype == jnp.bfloat16
    error, allowed = (np.abs(np.asarray(x, np.float32) - e).max() for x in (a, l))
    assert error <= 2 * allowed + 1e-5, name


@pytest.mark.parametrize('operation, lengths, N, K, H, options', CASES[::3])
def test_float32_matches_dense(operation, lengths, N, K, H, options):
  arrays = inputs(*lengths, N, K, H)
  kernel, reference = kernel_and_dense(operation, **options)
  all_close(dense.with_gradients(kernel, *arrays), dense.with_gradients(reference, *arrays), 1e-5)


@pytest.fixture
def small_pieces(monkeypatch):
  """Takes 16 queries at a time."""
  monkeypatch.setattr(attention_xla, 'PIECE_WEIGHTS', 1)


@pytest.mark.parametrize('operation, lengths, N, K, H, options', CASES[::2])
def test_the_xla_form_matches_dense(operation, lengths, N, K, H, options, small_pieces):
  arrays = inputs(*lengths, N, K, H)
  _, reference = kernel_and_dense(operation, **options)
  xla = functools.partial(flash_attention, **reference.keywords, implementation='xla')
  all_close(dense.with_gradients(xla, *arrays), dense.with_gradients(reference, *arrays), 1e-5)


def test_the_xla_form_never_holds_all_weights():
  x = jax.ShapeDtypeStruct((1, 4096, 8, 64), jnp.bfloat16)
  grad = jax.grad(lambda *qkv: flash_attention(*qkv, operation='sigmoid').astype(jnp.float32).sum(), argnums=(0, 1, 2))
  largest = max(int(np.prod(s or (1,))) for s in shapes_in(jax.make_jaxpr(grad)(x, x, x).jaxpr))
  assert largest <= attention_xla.PIECE_WEIGHTS < 8 * 4096**2


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


@pytest.mark.parametrize('operation, window', [('sigmoid', None), ('softmax', 9)])
def test_matches_the_models_attention(operation, window):
  q, k, v, _ = inputs(65, 65, 4, 2, 32)
  rule = AttentionRule(operation, scale=0.2, window=window, position='alibi')
  positions = np.arange(65)[None]
  expected = jax.jit(attend)(q, k.swapaxes(1, 2), v.swapaxes(1, 2), positions, positions, rule)
  slopes = np.asarray(jax.jit(lambda: distance_scores('alibi', jnp.full((1, 1, 1), -1), 4, None))())[0, :, 0, 0]
  actual = attended(q, k, v, slopes, operation=operation, scale=0.2, window=window)
  all_close([actual], [expected], 1e-5)


def test_sigmoid_keeps_queries_keys_and_values_only():
  q, k, v, _ = inputs(32, 32, 4, 2, 32)
  shapes = lambda tree: sorted(x.shape for x in jax.tree.leaves(tree))

  def kept(**options):
    attend = functools.partial(flash_attention, **options, **BLOCKS)
    return shapes(jax.eval_shape(lambda *qkv: jax.vjp(attend, *qkv)[1], q, k, v))

  assert kept(operation='sigmoid') == shapes((q, k, v))
  assert kept(operation='sigmoid', alibi_slopes=np.ones(4)) == shapes((q, k, v, np.ones((2, 4))))
  assert kept(operation='softmax') == shapes((q, k, v, q, np.ones((2, 4, 32))))


def test_the_forward_rule_keeps_its_own_arguments():
  q, k, v, _ = map(jnp.asarray, inputs(32, 32, 4, 2, 32))
  spec = Spec('sigmoid', causal=True, window=None, scale=1.0, bias=0.0, alibi=False, block_q=32, block_k=64)
  _, residuals = attend_forward(q, k, v, None, None, spec, 'interpret')
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


@pytest.mark.parametrize('how', [BLOCKS, {'implementation': 'xla'}], ids=['kernel', 'xla'])
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


@pytest.mark.parametrize(
  'change, message',
  [
    ({'operation': 'sigmod'}, "operation='sigmod' is not one of softmax, sigmoid"),
    ({'implementation': 'triton'}, "implementation='triton' is not one of pallas, xla, cudnn"),
    ({'implementation': 'cudnn'}, 'not float32'),
    ({'segments': jnp.ones((2, 7), jnp.int32)}, r'segments \(2, 7\): expected \[2, 8\]'),
    ({'window': 0}, 'window=0'),
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
