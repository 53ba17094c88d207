"""The assignment of every platform's form costs what SciPy's does, and respects sizes, forbidden pairs and JAX's transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from pallas_kernels import assignment_calls as calls
from pallas_kernels import linear_assignment
from tests.pallas_kernels.lowering import CALLS, lowered

FORMS = {
  'each': functools.partial(linear_assignment, implementation='xla'),
  'lockstep': jax.jit(lambda cost, sizes: calls.lockstep(cost.astype(jnp.float32), sizes)),
  'kernel': functools.partial(linear_assignment, interpret=True),
}


def token_costs(rng, T):
  """Costs of T positions for T tokens, some of them equal, in another order than that of the positions."""
  targets = rng.zipf(1.4, T) % (2 * T)
  logits = rng.normal(size=(T, 2 * T))
  for shift, weight in ((-1, 4), (0, 8), (1, 4)):
    logits[np.arange(T), np.roll(targets, rng.integers(T))[(np.arange(T) + shift) % T]] += weight * rng.random(T)
  return np.log(np.exp(logits).sum(1, keepdims=True)) - logits[:, targets]


FAMILIES = {
  'uniform': lambda rng, T: rng.uniform(0, 10, (T, T)),
  'tokens': token_costs,
  'tied': lambda rng, T: rng.integers(0, 4, (T, T)),
  'integer': lambda rng, T: rng.integers(-1000, 1000, (T, T)),
  'zero': lambda rng, T: np.zeros((T, T)),
  'equal': lambda rng, T: np.full((T, T), rng.integers(-9, 9)),
  'range': lambda rng, T: np.exp(rng.normal(0, 8, (T, T))),
  'negative': lambda rng, T: -rng.exponential(5, (T, T)),
  'products': lambda rng, T: np.outer(np.arange(T), np.arange(T)),  # Every row prefers the same column.
  'constant but one': lambda rng, T: np.where(np.arange(T)[:, None] == rng.permutation(T), 0.0, 1e6),
  'sums': lambda rng, T: rng.integers(0, 99, (T, 1)) + rng.integers(0, 99, (1, T)),  # All permutations are optimal.
  'small differences': lambda rng, T: 4096 + rng.integers(0, 3, (T, T)),
}
WHOLE_NUMBERS = ('tied', 'integer', 'zero', 'equal', 'products', 'constant but one', 'sums', 'small differences')


def totals(cost, columns, sizes):
  return np.array([c[np.arange(n), j[:n]].astype(np.float64).sum() for c, j, n in zip(cost, columns, sizes)])


def check(form, cost, sizes, exact):
  columns = np.asarray(FORMS[form](cost, sizes))
  T, cost = cost.shape[-1], np.asarray(cost, np.float64)
  assert columns.dtype == np.int32
  np.testing.assert_array_equal(np.sort(columns), np.broadcast_to(np.arange(T), columns.shape))
  is_padding = np.arange(T) >= np.asarray(sizes)[:, None]
  np.testing.assert_array_equal(np.where(is_padding, columns, -1), np.where(is_padding, np.arange(T), -1))
  best = np.array([c[:n, :n][linear_sum_assignment(c[:n, :n])].sum() for c, n in zip(cost, sizes)])
  largest = np.array([abs(c[:n, :n]).max(initial=0) for c, n in zip(cost, sizes)])
  allowed = 0.0 if exact else 2e-7 * largest * sizes
  assert (totals(cost, columns, sizes) <= best + allowed + 1e-9).all()


def batch(rng, family, B, T, dtype=np.float32):
  return np.stack([FAMILIES[family](rng, T) for _ in range(B)]).astype(dtype)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('form', FORMS)
def test_equals_scipy_for_every_size(form, family):
  rng = np.random.default_rng(1)
  sizes = np.concatenate([np.arange(18), rng.integers(0, 18, 15 if form == 'kernel' else 103)])
  cost = batch(rng, family, len(sizes), 17)
  cost[np.arange(17) >= sizes[:, None]] = np.nan  # Padding may hold anything.
  cost = np.where(np.arange(17)[None, None, :] >= sizes[:, None, None], -1e9, cost)
  check(form, cost, sizes, family in WHOLE_NUMBERS)


@pytest.mark.parametrize('form', FORMS)
def test_equals_scipy_in_bfloat16(form):
  rng = np.random.default_rng(2)
  cost = np.concatenate([batch(rng, family, 4, 17) for family in FAMILIES if family != 'range'])
  check(form, jnp.asarray(cost, jnp.bfloat16), np.full(len(cost), 17), exact=False)


@pytest.mark.slow
@pytest.mark.parametrize(
  'T, B', [(1, 20), (2, 200), (3, 200), (7, 200), (16, 120), (33, 80), (64, 40), (128, 16), (256, 4)]
)
def test_equals_scipy_on_many_matrices(T, B):
  rng = np.random.default_rng(T)
  for family in FAMILIES:
    check('each', batch(rng, family, B, T), np.full(B, T), family in WHOLE_NUMBERS)


@pytest.mark.parametrize('form', FORMS)
def test_forbidden_pairs_are_avoided_where_possible(form):
  rng = np.random.default_rng(3)
  cost = batch(rng, 'uniform', 40, 17)
  planted = np.stack([rng.permutation(17) for _ in cost])
  forbidden = rng.random(cost.shape) < 0.8
  np.put_along_axis(forbidden, planted[..., None], False, axis=2)
  values = rng.choice([np.inf, np.nan, -np.inf], cost.shape)
  sizes = np.full(40, 17)
  columns = FORMS[form](jnp.asarray(np.where(forbidden, values, cost), jnp.float32), jnp.asarray(sizes))
  best = [c[linear_sum_assignment(c)].sum() for c in np.where(forbidden, np.inf, cost.astype(np.float64))]
  np.testing.assert_allclose(totals(np.where(forbidden, np.inf, cost), np.asarray(columns), sizes), best, rtol=1e-6)


@pytest.mark.parametrize('form', FORMS)
def test_as_many_rows_as_possible_are_allowed_where_not_all_are(form):
  cost = np.full((4, 17, 17), np.inf, np.float32)
  cost[1, 3] = 2.0  # All others have no column at all.
  cost[2, :, :5] = 1.0  # Five columns for 17 rows.
  cost[3] = np.where(np.arange(17) == 4, np.nan, 1.0)  # NaN in one column.
  columns = np.asarray(FORMS[form](jnp.asarray(cost), jnp.full(4, 17)))
  np.testing.assert_array_equal(np.sort(columns), np.broadcast_to(np.arange(17), (4, 17)))
  np.testing.assert_array_equal(columns[0], np.arange(17))
  assert [np.isfinite(c[np.arange(17), j]).sum() for c, j in zip(cost, columns)] == [0, 1, 5, 16]


def test_padding_does_not_change_the_result():
  cost = batch(np.random.default_rng(4), 'uniform', 9, 17)
  padded = np.pad(cost, ((0, 0), (0, 17), (0, 17)), constant_values=-7)
  columns = linear_assignment(padded, np.full(9, 17))
  np.testing.assert_array_equal(columns[:, :17], linear_assignment(cost))
  np.testing.assert_array_equal(columns[:, 17:], np.broadcast_to(np.arange(17, 34), (9, 17)))


def test_jit_vmap_grad_and_devices():
  cost = jnp.asarray(batch(np.random.default_rng(5), 'uniform', 8, 17))
  sizes = jnp.array([17, 5, 0, 1, 16, 17, 9, 2])
  expected = linear_assignment(cost, sizes)
  pairs = lambda x: x.reshape(4, 2, *x.shape[1:])
  for mapped in (jax.vmap, jax.pmap):
    np.testing.assert_array_equal(mapped(linear_assignment)(pairs(cost), pairs(sizes)), pairs(expected))
  same_sizes = jax.vmap(linear_assignment, in_axes=(0, None))(pairs(cost), jnp.array([17, 17]))
  np.testing.assert_array_equal(same_sizes, pairs(linear_assignment(cost)))

  matched = lambda cost: jnp.take_along_axis(cost, linear_assignment(cost)[..., None], axis=2)
  one_by_one = jax.vmap(lambda cost_TT: matched(cost_TT[None])[0])
  scale = jnp.arange(8.0)[:, None, None]
  gradient = jax.jit(jax.grad(lambda cost: jnp.sum(matched(cost) * scale + one_by_one(cost))))(cost)
  np.testing.assert_array_equal(gradient, jax.nn.one_hot(linear_assignment(cost), 17) * (scale + 1))


@pytest.mark.parametrize('form', [*FORMS, 'default'])
def test_shards_over_devices(form):
  assign = FORMS.get(form, linear_assignment)  # The default traces the kernel too, for a TPU.
  cost, sizes = jnp.asarray(batch(np.random.default_rng(6), 'tokens', 8, 17)), jnp.arange(10, 18)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('data',))
  # Pallas cannot be interpreted where JAX checks over which mesh axes each value varies.
  options = {'check_vma': False} if form == 'kernel' else {}
  specs = {'in_specs': (jax.P('data'), jax.P('data')), 'out_specs': jax.P('data')}
  sharded = jax.jit(jax.shard_map(assign, mesh=mesh, **specs, **options))
  np.testing.assert_array_equal(sharded(cost, sizes), assign(cost, sizes))


@pytest.mark.parametrize('axes', [('data',), ('data', 'fsdp'), (None, 'data')], ids=str)
def test_a_partitioned_program_splits_the_problems_and_gathers_nothing_in_its_loops(axes):
  cost, sizes = jnp.asarray(batch(np.random.default_rng(7), 'uniform', 8, 10)), jnp.arange(3, 11)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('data', 'fsdp'))
  put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
  spec = (None, 'data') if axes[0] is None else (axes,)  # Rows of a problem that are split are gathered before.
  program = jax.jit(lambda cost, sizes: 2 * linear_assignment(cost + 1, sizes))
  found = program(put(cost, *spec), put(sizes, *spec[:1]))
  np.testing.assert_array_equal(found, 2 * linear_assignment(cost, sizes))
  text = program.lower(put(cost, *spec), put(sizes, *spec[:1])).compile().as_text()
  assert ('all-gather' in text) == (axes[0] is None)


def test_the_host_is_not_called():
  compiled = jax.jit(linear_assignment).lower(jax.ShapeDtypeStruct((4, 64, 64), jnp.float32)).compile().as_text()
  assert 'callback' not in compiled and 'custom-call' not in compiled


@pytest.mark.parametrize('implementation, kernels', [(None, 1), ('pallas', 1), ('xla', 0)])
def test_lowers_for_a_tpu(implementation, kernels):
  cost, sizes = jax.ShapeDtypeStruct((4, 100, 100), jnp.bfloat16), jax.ShapeDtypeStruct((4,), jnp.int32)
  assign = functools.partial(linear_assignment, implementation=implementation)
  assert lowered(assign, 'tpu', cost, sizes).count(CALLS['tpu']) == kernels


def test_lowers_for_a_gpu_in_xla_alone():
  cost = jax.ShapeDtypeStruct((4, 100, 100), jnp.float32)
  assert CALLS['cuda'] not in lowered(linear_assignment, 'cuda', cost)
  with pytest.raises(ValueError, match="'pallas' runs on tpu, and this program is compiled for cuda"):
    lowered(functools.partial(linear_assignment, implementation='pallas'), 'cuda', cost)
  with pytest.raises(ValueError, match="'pallas' runs on tpu, and the arrays are on cpu"):
    linear_assignment(jnp.zeros((1, 4, 4)), implementation='pallas')


def test_nothing_to_assign():
  assert linear_assignment(jnp.ones((0, 3, 3))).shape == (0, 3)
  assert linear_assignment(jnp.ones((3, 0, 0))).shape == (3, 0)


@pytest.mark.parametrize(
  'cost, sizes, options, message',
  [
    (np.ones((2, 3, 4)), None, {}, r'cost \(2, 3, 4\)'),
    (np.ones((3, 3)), None, {}, r'cost \(3, 3\)'),
    (np.ones((2, 3, 3)), np.array([3]), {}, r'sizes \(1,\)'),
    (np.ones((2, 3, 3)), np.array([3.0, 2.0]), {}, 'sizes float32'),
    (np.ones((2, 3, 3)), None, {'implementation': 'scipy'}, "implementation='scipy' is not one of pallas, xla"),
    (np.ones((1, 1025, 1025)), None, {'implementation': 'pallas'}, 'T <= 1024'),
  ],
)
def test_wrong_arguments_are_named(cost, sizes, options, message):
  with pytest.raises(ValueError, match=message):
    linear_assignment(cost, sizes, **options)
