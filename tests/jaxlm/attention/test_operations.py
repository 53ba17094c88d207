"""Every operation, position scheme and sink against loops over single queries and keys, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.attention import distance as schemes
from jaxlm.attention.attend import attend, attention_weights
from jaxlm.attention.operations import KERNELS, OPERATIONS
from jaxlm.attention.rule import AttentionRule
from jaxlm.config import Operation, SinkConfig
from jaxlm.models.transformer import Transformer, abstract_params, count_params
from tests.models import TINY, apply, init

B, T, K, G, H = 2, 7, 2, 3, 4
N = K * G
sigma = lambda s: 1 / (1 + math.exp(-s))
elu1 = lambda s: s + 1 if s > 0 else math.exp(s)
linear = lambda s: s
# name -> (similarity, normaliser of the row of similarities)
ORACLE = {
  'softmax': (math.exp, sum),
  'sigmoid': (sigma, lambda w: 1.0),
  'sigmoid_norm': (sigma, lambda w: sum(w) + 1e-8),
  'sigmoid_len': (sigma, len),
  'sigmoid_sqrtlen': (sigma, lambda w: len(w) ** 0.5),
  'elu1': (elu1, lambda w: 1.0),
  'elu1_norm': (elu1, lambda w: sum(w) + 1e-8),
  'identity': (linear, lambda w: 1.0),
  'identity_norm': (linear, lambda w: max(abs(sum(w)), 1.0)),
  'kernel_elu1': (linear, lambda w: 1.0),
  'kernel_elu1_norm': (linear, lambda w: sum(w) + 1e-8),
  'mlp': (linear, lambda w: 1.0),
  'mlp_norm': (linear, lambda w: max(abs(sum(w)), 1.0)),
}


def qkv(seed=0, positive=False):
  rng = np.random.default_rng(seed)
  make = lambda *shape: rng.normal(size=shape).astype(np.float32)
  q, k, v = make(B, T, N, H), make(B, K, T, H), make(B, K, T, H)
  return (np.abs(q), np.abs(k), v) if positive else (q, k, v)


def oracle(q, k, v, operation, *, score=lambda n, i, j: 0.0, sees=lambda i, j: j <= i, slot=None, power=1.0):
  """slot: (function of (query, head) giving its logit, value [K, H])."""
  similarity, normaliser = ORACLE[operation]
  out = np.zeros((B, T, N, H))
  for b in range(B):
    for i in range(T):
      for n in range(N):
        keys = [j for j in range(T) if sees(i, j)]
        w = [similarity(float(q[b, i, n] @ k[b, n // G, j]) / H**0.5 + score(n, i, j)) for j in keys]
        values = [v[b, n // G, j].astype(float) for j in keys]
        if slot is not None:
          w.append(similarity(slot[0](q[b, i, n], n)))
          values.append(slot[1][n // G].astype(float))
        if power == 1.0:
          z = normaliser(w)
        else:
          z = sum(x**power for x in w) ** (1 / power)
        out[b, i, n] = sum(x * y for x, y in zip(w, values)) / z
  return out


@jax.jit
def ours(q, k, v, rule, mask=None):
  at = jnp.arange(T)[None]
  return attend(q, k, v, at, at, rule, mask)


@jax.jit
def with_gradients(q, k, v, rule, weight):
  """Returns the output, and the gradients of its sum weighted by `weight`."""
  out, vjp = jax.vjp(lambda *qkv: ours(*qkv, rule), q, k, v)
  return out, vjp(weight)


weights_of = jax.jit(attention_weights)


def numeric_gradient(f, x, index, step=1e-5):
  up, down = x.astype(np.float64).copy(), x.astype(np.float64).copy()
  up[index] += step
  down[index] -= step
  return (f(up) - f(down)) / (2 * step)


def check(rule, oracle_call, positive=False):
  """Outputs at rtol 1e-4, and gradients of a random projection at a few entries of q, k and v."""
  arrays = qkv(positive=positive)
  weight = np.random.default_rng(9).normal(size=(B, T, N, H)).astype(np.float32)
  out, gradients = jax.device_get(with_gradients(*arrays, rule, weight))
  np.testing.assert_allclose(out, oracle_call(*arrays), rtol=1e-4, atol=1e-5)
  for which, index in ((0, (0, 4, 1, 2)), (1, (1, 0, 2, 3)), (2, (0, 1, 1, 0))):
    at = lambda x, which=which: float(
      (oracle_call(*(x if i == which else a.astype(np.float64) for i, a in enumerate(arrays))) * weight).sum()
    )
    np.testing.assert_allclose(
      gradients[which][index], numeric_gradient(at, arrays[which], index), rtol=2e-3, atol=2e-4
    )


def test_the_table_is_complete():
  assert set(OPERATIONS) == set(ORACLE) == set(Operation.__args__)


@pytest.mark.parametrize('operation', ORACLE)
def test_operations_equal_loops_forward_and_backward(operation):
  # Normalising kernels divide by sums of products of positive features.
  positive = operation.startswith('kernel_elu1')
  check(AttentionRule(operation, H**-0.5), functools.partial(oracle, operation=operation), positive)


@pytest.mark.parametrize(
  'operation, power', [('softmax', 0.5), ('softmax', 2.0), ('sigmoid_norm', 3.0), ('elu1_norm', 0.5)]
)
def test_power_normaliser(operation, power):
  check(AttentionRule(operation, H**-0.5, power=power), functools.partial(oracle, operation=operation, power=power))


def test_power_of_softmax_is_a_softmax_of_scaled_logits():
  q, k, _ = qkv()
  at = np.arange(T)[None]
  rule = AttentionRule('softmax', H**-0.5, power=3.0)
  scaled = AttentionRule('softmax', 3 * H**-0.5)
  w, _ = weights_of(q, k, at, at, rule)
  np.testing.assert_allclose(w, np.asarray(weights_of(q, k, at, at, scaled)[0]) ** (1 / 3), atol=1e-6)
  one, _ = weights_of(q, k, at, at, AttentionRule('softmax', H**-0.5, power=1.0 + 1e-9))
  np.testing.assert_allclose(one, weights_of(q, k, at, at, AttentionRule('softmax', H**-0.5))[0], atol=1e-6)


def t5_bucket(distance):
  if distance < 16:
    return max(distance, 0)
  return min(16 + int(math.log(distance / 16) / math.log(8) * 16), 31)


@pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('scheme', ['alibi', 'relative_t5', 'relative_paper'])
def test_distance_schemes_equal_loops(operation, scheme):
  table = np.random.default_rng(3).normal(size=(N, 32)).astype(np.float32)
  score = {
    'alibi': lambda n, i, j: -(2 ** (-8 * (n + 1) / N)) * (i - j),
    'relative_t5': lambda n, i, j: float(table[n, t5_bucket(i - j)]),
    'relative_paper': lambda n, i, j: float(t5_bucket(i - j)),
  }[scheme]
  rule = AttentionRule(operation, H**-0.5, position=scheme, distance_table=table if scheme == 'relative_t5' else None)
  check(rule, functools.partial(oracle, operation=operation, score=score))


def test_buckets_are_exact_then_logarithmic():
  distance = np.arange(-3, 300)
  np.testing.assert_array_equal(jax.jit(schemes.bucket)(distance), [t5_bucket(int(d)) for d in distance])


@pytest.mark.parametrize('operation', ORACLE)
@pytest.mark.parametrize('value', ['value', 'zero'])
def test_key_slots_equal_loops(operation, value):
  rng = np.random.default_rng(4)
  key, fixed = np.abs(rng.normal(size=(K, H))).astype(np.float32), rng.normal(size=(K, H)).astype(np.float32)
  slot_value = fixed if value == 'value' else np.zeros_like(fixed)
  logit = lambda query, n: float(query @ key[n // G]) / H**0.5
  rule = AttentionRule(operation, H**-0.5, slot_key=key, slot_value=fixed if value == 'value' else None)
  positive = operation.startswith('kernel_elu1')
  check(rule, functools.partial(oracle, operation=operation, slot=(logit, slot_value)), positive)


def test_logit_slots_and_the_key_without_learned_dimensions_are_softmax_off_by_one():
  q, k, v = qkv()
  by_logit = ours(q, k, v, AttentionRule('softmax', H**-0.5, slot_logit=np.zeros(N, np.float32)))
  by_key = ours(q, k, v, AttentionRule('softmax', H**-0.5, slot_key=np.zeros((K, H), np.float32)))
  np.testing.assert_allclose(by_logit, by_key, atol=1e-6)
  logits = np.einsum('bthd,bhsd->bhts', q, np.repeat(k, G, 1)) / H**0.5
  e = np.exp(logits) * np.tril(np.ones((T, T)))
  w = e / (1 + e.sum(-1, keepdims=True))
  np.testing.assert_allclose(by_logit, np.einsum('bhts,bhsd->bthd', w, np.repeat(v, G, 1)), atol=1e-5)
  biased = np.random.default_rng(0).normal(size=N).astype(np.float32)
  check(
    AttentionRule('softmax', H**-0.5, slot_logit=biased),
    functools.partial(oracle, operation='softmax', slot=(lambda query, n: float(biased[n]), np.zeros((K, H)))),
  )


def test_windows_and_prefixes_equal_loops():
  sees = lambda i, j: (j <= i and i - j < 3) or j < 2
  rule = AttentionRule('sigmoid', H**-0.5, window=3, prefix=2)
  check(rule, functools.partial(oracle, operation='sigmoid', sees=sees))


# name -> changes of TINY; every variation of the paper, and the options around them
VARIATIONS = {
  **{name: {'attention': name} for name in ORACLE},
  **{position: {'position': position} for position in ('sinusoidal', 'learned', 'alibi', 'relative_t5', 'relative_paper', 'none')},
  **{f'sink {kind}': {'sink': SinkConfig(kind)} for kind in ('token', 'kv', 'k', 'v', 'logit')},
  'sink kv shared': {'sink': SinkConfig('kv', shared=True)},
  'sink k, value': {'sink': SinkConfig('k', value='ones', value_scale=5.0, learned_dims=2)},
  'sink k, kernel': {'sink': SinkConfig('k'), 'attention': 'kernel_elu1_norm'},
  'sink token, learned positions': {'sink': SinkConfig('token'), 'position': 'learned'},
  'sink token, window': {'sink': SinkConfig('token'), 'windows': (3,)},
  'post-norm': {'norm_placement': 'post'},
  'hybrid norm': {'norm_placement': 'hybrid'},
  'gemma': {
    'norm_placement': 'sandwich', 'norm_plus_one': True, 'qk_norm': True, 'scaled_embeddings': True, 'query_scale_dim': 5,
    'windows': (3,), 'local_rope_theta': 100.0, 'attention_softcap': 2.0, 'logit_softcap': 3.0,
  },
  'heads summed': {'head_mixing': 'sum'},
  'gate of elements': {'output_gate': 'element'},
  'gate of heads': {'output_gate': 'head', 'head_mixing': 'sum', 'sink': SinkConfig('v')},
  'prefix': {'prefix': 3},
  'prefix, sink token': {'prefix': 3, 'sink': SinkConfig('token')},
  'power': {'attention_power': 0.5},
  'row sum, offset': {'attention': 'sigmoid', 'attention_row_sum': 0.5, 'attention_offset': 'neg_log_n'},
  'relu': {'activation': 'relu', 'gated_mlp': False},
}  # fmt: skip

IN_BRIEF = ('softmax', 'sigmoid', 'sink token')
RARER = ('gate of heads', 'sink kv shared', 'sink k', 'sink v', 'heads summed', 'relu', 'power', 'learned')


def is_everyday(name):
  """Other operations differ in a formula that test_operations_equal_loops... proves; the rest of the model is the same."""
  return name in IN_BRIEF or not (', ' in name or name in ORACLE or name in RARER)


def spread(params, seed=5):
  """Parameters that matter: those that start at 0 or near it are drawn anew."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype), jax.device_get(params))


@functools.partial(jax.jit, static_argnums=0)
def read(config, params, tokens, lengths):
  """Returns logits read at once, read from a ragged prompt, read one token further, and gradients; one compilation."""
  model = lambda *args: Transformer(config).apply({'params': params}, *args)

  def loss(params):
    full, _ = Transformer(config).apply({'params': params}, tokens)
    return jnp.log(jnp.mean(full**2)), full

  gradients, full = jax.grad(loss, has_aux=True)(params)
  prompt = jnp.where(jnp.arange(5)[None] < lengths[:, None], tokens[:, :5], 7)
  first, cache = model(prompt, None, caches.FullCache.create(config, 3, 8))
  new = jnp.take_along_axis(tokens, lengths[:, None], 1)
  then, _ = model(new, lengths[:, None], cache)
  return full, first, then, gradients


@pytest.mark.parametrize(
  'name, dtype, tolerance',
  [pytest.param(name, 'float32', 5e-5, marks=() if is_everyday(name) else pytest.mark.slow) for name in VARIATIONS]
  + [pytest.param(name, 'bfloat16', 0.12, marks=() if name in IN_BRIEF else pytest.mark.slow) for name in VARIATIONS],
)
def test_every_variation_trains_is_causal_and_decodes_with_a_cache(name, dtype, tolerance):
  """Cached = full forward. Changing a token leaves earlier logits alone; within a prefix it may not. Gradients arrive."""
  config = TINY.replace(num_layers=1, dtype=dtype, **VARIATIONS[name])
  params = spread(init(TINY.replace(num_layers=1, **VARIATIONS[name]), jax.random.key(0)))
  tokens = np.tile(np.random.default_rng(1).integers(0, TINY.vocab_size - 1, 7, np.int32), (3, 1))
  tokens[1, 6], tokens[2, 2], lengths = tokens[1, 6] + 1, tokens[2, 2] + 1, np.array([5, 4, 5])
  full, first, then, gradients = jax.device_get(read(config, params, tokens, lengths))
  size = np.abs(full).max()
  for i, n in enumerate(lengths):
    np.testing.assert_allclose(first[i, :n], full[i, :n], atol=tolerance * size)
  np.testing.assert_allclose(then[:, 0], full[np.arange(3), lengths], atol=tolerance * size)
  np.testing.assert_array_equal(full[0, :6], full[1, :6])
  assert (full[0, 6] != full[1, 6]).any()
  assert (full[0, 0] != full[2, 0]).any() == bool(config.prefix)
  for path, g in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def test_packed_documents_share_a_sink_token_and_nothing_else():
  config = TINY.replace(sink=SinkConfig('token'))
  params = spread(init(config, jax.random.key(0)))
  a, b = (np.random.default_rng(n).integers(0, 50, (1, n), np.int32) for n in (4, 5))
  segments, positions = np.array([[1] * 4 + [2] * 5]), np.array([[*range(4), *range(5)]])
  packed, _ = apply(config, params, np.concatenate([a, b], 1), positions, caches.Sequence(segments))
  alone = [apply(config, params, x)[0] for x in (a, b)]
  np.testing.assert_allclose(packed, np.concatenate(alone, 1), atol=5e-5)


@pytest.mark.slow
def test_scaling_the_rows_equals_scaling_the_output_projection():
  """Rows that sum to a, under SGD: W_O times a and its learning rate times a^2 (the paper's equivalence)."""
  a, rate = 0.2, 0.05
  tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, TINY.vocab_size)
  params = init(TINY, jax.random.key(0))
  is_output = lambda path: len(path) > 1 and path[-2].key == 'o'

  def trained(config, params, rates):
    loss = lambda p: jnp.mean(Transformer(config).apply({'params': p}, tokens)[0] ** 2)
    for _ in range(5):
      params = jax.tree.map(lambda p, g, r: p - r * g, params, jax.jit(jax.grad(loss))(params), rates)
    return apply(config, params, tokens)[0]

  ones = jax.tree.map(lambda _: rate, params)
  scaled = jax.tree_util.tree_map_with_path(lambda path, p: a * p if is_output(path) else p, params)
  rates = jax.tree_util.tree_map_with_path(lambda path, _: rate * a**2 if is_output(path) else rate, params)
  left = trained(TINY.replace(attention_row_sum=a), params, ones)
  np.testing.assert_allclose(left, trained(TINY, scaled, rates), atol=1e-5)


def test_parameter_counts_are_the_papers():
  from trainers.pretrain import PRESETS

  params = abstract_params(PRESETS['sink-60m'][1].model)
  embeddings = count_params({name: params[name] for name in ('embed', 'head')})
  assert (count_params(params) - embeddings, embeddings) == (58_998_528, 77_463_552)
  assert set(KERNELS) < set(OPERATIONS)


@pytest.mark.slow
def test_the_loss_at_the_start_is_near_that_of_a_uniform_guess():
  from trainers.pretrain import PRESETS

  config = PRESETS['sink-1m'][1].model.replace(dtype='float32')
  params = init(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (1, 33), 0, config.vocab_size)
  log_p = jax.nn.log_softmax(apply(config, params, tokens[:, :-1])[0])
  loss = -jnp.take_along_axis(log_p, tokens[:, 1:, None], -1).mean()
  assert abs(float(loss) - math.log(config.vocab_size)) < 0.3


@pytest.mark.parametrize(
  'bad, message',
  [
    ({'attention': 'sigmoid', 'attention_power': 2.0}, "attention_power=2.0 is for softmax.*not for 'sigmoid'"),
    ({'attention': 'sofmax'}, "attention 'sofmax'.*Did you mean 'softmax'"),
    ({'position': 'rotary'}, "position 'rotary'"),
    ({'prefix': 65}, r'prefix=65 must be within 0 \.\. self.max_length=64'),
    ({'sink': SinkConfig('k', learned_dims=9)}, r'learned_dims=9 must be within 0 \.\. self.head_dim=8'),
    ({'norm_placement': 'post', 'parallel_residual': True}, "needs norm_placement='pre', not 'post'"),
    ({'norm_placement': 'sandwich', 'parallel_residual': True}, "needs norm_placement='pre', not 'sandwich'"),
    ({'norm': 'layernorm', 'norm_plus_one': True}, "norm_plus_one needs norm='rmsnorm', not 'layernorm'"),
    ({'local_rope_theta': 0.0, 'windows': (3,)}, 'local_rope_theta=0.0 must be positive'),
    ({'local_rope_theta': 1e4, 'windows': (3,), 'position': 'none'}, "needs position='rope', not 'none'"),
    ({'query_scale_dim': 0}, 'query_scale_dim=0 must be at least 1'),
  ],
)
def test_combinations_without_a_meaning_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    TINY.replace(**bad)
