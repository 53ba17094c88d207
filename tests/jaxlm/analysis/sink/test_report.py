"""The sink metric against loops over attention maps, and the probe against maps that it never keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import analysis
from jaxlm.attention import mass
from jaxlm.attention.attend import attention_weights
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import Sequence
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import Transformer
from tests.models import TINY, tiny_model
from tests.pallas_kernels.test_attention import shapes_in
from tests.sink_models import CONFIGS, model

B, T = 3, 20


def tokens(rows=B, length=T):
  return np.random.default_rng(1).integers(0, TINY.vocab_size, (rows, length), dtype=np.int32)


class Recorder:
  """A cache that keeps all that goes through it."""

  fresh = True

  def __init__(self):
    self.layers = []

  def attend(self, layer, q, k, v, positions, rule):
    self.layers.append((q, k, v, rule))
    return Sequence().attend(layer, q, k, v, positions, rule)[0], self


@functools.partial(jax.jit, static_argnums=0)
def _record(config, params, ids):
  cache = Recorder()
  logits, states = Transformer(config).apply(
    {'params': params}, ids, method=lambda m, x: (m(x)[0], m.states(x, cache=cache)[0])
  )
  return logits, states, cache.layers


def record(lm, ids):
  """Returns (logits, states, [(q, k, v, rule) of each layer]) of a plain forward pass."""
  return _record(lm.config, lm.params, jnp.asarray(ids))


OPERATIONS = {
  'softmax': lambda s: np.exp(s) / np.exp(s).sum(),
  'sigmoid': lambda s: 1 / (1 + np.exp(-s)),
  'elu1': lambda s: np.where(s > 0, s + 1, np.exp(s)),
  'identity': lambda s: s,
}


def loop_map(q_TH, k_TH, rule, slot_key, slot_logit, slope):
  """One head's map, a query at a time, in float64."""
  length, before = len(q_TH), int(rule.has_slot)
  weights = np.zeros((length, length + before))
  for t, q in enumerate(q_TH):
    seen = [s for s in range(length) if s < rule.prefix or 0 <= t - s < (rule.window or length)]
    scores = [q @ k_TH[s] * rule.scale - slope * (t - s) for s in seen]
    if rule.has_slot:
      scores = [slot_logit if slot_key is None else q @ slot_key * rule.scale, *scores]
    weights[t, [*range(before), *(s + before for s in seen)]] = OPERATIONS[rule.operation](np.array(scores))
  return weights


def loop_maps(lm, layers):
  c, maps = lm.config, []
  for q, k, _, rule in layers:
    q, k, rows = np.asarray(q, np.float64), np.asarray(k, np.float64), []
    for b in range(q.shape[0]):
      for n in range(c.num_heads):
        group = n // (c.num_heads // c.num_kv_heads)
        key = None if rule.slot_key is None else np.asarray(rule.slot_key, np.float64)[group]
        logit = None if rule.slot_logit is None else float(rule.slot_logit[n])
        slope = 2.0 ** (-8 * (n + 1) / c.num_heads) if c.position == 'alibi' else 0.0
        rows.append(loop_map(q[b, :, n], k[b, :, group], rule, key, logit, slope))
    maps.append(np.array(rows).reshape(q.shape[0], c.num_heads, *rows[0].shape))
  return np.array(maps)


def loop_alpha(maps):
  queries, keys = maps.shape[-2:]
  alpha = np.zeros((*maps.shape[:-2], keys))
  for k in range(keys):
    first = max(0, k - (keys - queries))
    alpha[..., k] = maps[..., first:, k].sum(-1) / (queries - first)
  return alpha


def loop_sink(maps, eps):
  L, rows, N = maps.shape[:3]
  alpha, sink = loop_alpha(maps), np.zeros(maps.shape[-1])
  for layer in range(L):
    for b in range(rows):
      for n in range(N):
        sink += (alpha[layer, b, n] > eps) / (L * rows * N)
  return sink


def random_maps(slot=0, seed=0, concentration=0.1):
  rng = np.random.default_rng(seed)
  maps = (rng.gamma(concentration, size=(2, 3, 4, 18, 18 + slot)) + 1e-9) * np.tri(18, 18 + slot, slot)
  maps[..., 0] *= 3
  return maps / maps.sum(-1, keepdims=True)


# ---- the metric ----


def test_uniform_first_key_and_identity_maps_have_their_exact_values():
  length = 64
  uniform = (np.tri(length) / np.arange(1, length + 1)[:, None])[None, None, None]
  alpha = np.asarray(analysis.mean_attention(uniform))[0, 0, 0]
  np.testing.assert_allclose(alpha[[0, 9]], [0.07412, 0.0348], atol=1e-4)
  assert not analysis.sink_metric(uniform).any()
  first = np.zeros_like(uniform)
  first[..., 0] = 1
  assert np.asarray(analysis.mean_attention(first))[0, 0, 0, 0] == 1
  np.testing.assert_array_equal(analysis.sink_metric(first), np.eye(length)[0])
  identity = np.eye(length)[None, None, None]
  np.testing.assert_allclose(analysis.mean_attention(identity)[0, 0, 0], 1 / (length - np.arange(length)), rtol=1e-6)


@pytest.mark.parametrize('slot', [0, 1])
def test_metric_equals_a_loop_on_random_maps(slot):
  maps = random_maps(slot)
  np.testing.assert_allclose(analysis.mean_attention(maps), loop_alpha(maps), atol=1e-6)
  expected = [loop_sink(maps, eps) for eps in (0.1, 0.3)]
  assert 0 < expected[1][0] < expected[0][0] < 1
  np.testing.assert_allclose(analysis.sink_metric(maps), expected[1], atol=1e-6)
  np.testing.assert_allclose(analysis.sink_metric(maps, (0.1, 0.3)), expected, atol=1e-6)
  np.testing.assert_allclose(jax.jit(analysis.sink_metric)(maps), expected[1], atol=1e-6)


def test_threshold_is_strict_and_taken_per_sequence():
  maps = np.zeros((1, 2, 1, 16, 16))
  maps[0, 0, ..., 0], maps[0, 1, ..., 0] = 0.5, 0.0  # On average 0.25, below the threshold.
  assert analysis.sink_metric(maps, 0.3)[0] == 0.5
  assert analysis.sink_metric(maps, 0.5)[0] == 0


def test_slot_is_seen_by_all_queries_and_the_first_token_too():
  maps = np.zeros((1, 1, 1, 16, 17))
  maps[..., 0], maps[..., 1] = 0.6, 0.4
  np.testing.assert_allclose(analysis.mean_attention(maps)[0, 0, 0, :3], [0.6, 0.4, 0], atol=1e-6)
  np.testing.assert_array_equal(analysis.sink_metric(maps, 0.5)[:2], [1, 0])


def test_proxy_is_blind_to_mass_and_row_mass_is_not():
  maps = random_maps()
  scale = np.array([-1e-2, 1, 7, 20]).reshape(1, 1, 4, 1, 1)
  np.testing.assert_allclose(analysis.proxy(maps * scale), maps, atol=1e-5)
  np.testing.assert_allclose(analysis.row_mass(maps * scale), np.broadcast_to(scale[..., 0, 0], (2, 3, 4)), rtol=1e-5)


@pytest.mark.parametrize(
  'shape, words',
  [((1, 1, 1, 15, 15), '15 tokens are too few'), ((16, 16), 'shape'), ((1, 1, 1, 16, 18), '16 queries .* not 18')],
)
def test_maps_that_cannot_be_read_are_refused(shape, words):
  with pytest.raises(ValueError, match=words):
    analysis.sink_metric(np.zeros(shape))


# ---- the probe ----


@pytest.mark.parametrize('name', CONFIGS)
def test_sinks_of_a_model_equal_those_of_its_maps(name):
  lm, ids = model(name), tokens()
  _, states, layers = record(lm, ids)
  maps = loop_maps(lm, layers)
  proxy = np.abs(maps) / (np.abs(maps).sum(-1, keepdims=True) + 1e-8)
  eps = (0.12, 0.2)
  report = analysis.sinks(lm, ids, eps=eps, chunk=7, batch_size=2)
  kind = lm.config.sink.kind
  assert report.slot == (kind != 'none') and report.positions[:2] == (['*', '1'] if report.slot else ['1', '2'])
  assert maps.shape[-2:] == {'none': (T, T), 'token': (T + 1, T + 1)}.get(kind, (T, T + 1))
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
  close(report.alpha, loop_alpha(maps).mean(1))
  close(report.alpha_proxy, loop_alpha(proxy).mean(1))
  close(report.row_mass, maps.sum(-1).mean(-1).mean(1))
  close(report.sink_raw, [loop_sink(maps, e) for e in eps])
  close(report.sink_proxy, [loop_sink(proxy, e) for e in eps])
  assert 0 < report.sink_proxy[1, 0] < 1 or report.sink_proxy[0].any()

  def ratio(x):
    norms = np.linalg.norm(np.asarray(x, np.float64), axis=-1)
    return (norms[:, 0] / norms[:, 1:].mean(1)).mean()

  close(report.hidden_norm_ratio, [ratio(x) for x in states])
  for i, field in ((1, report.key_norm_ratio), (2, report.value_norm_ratio)):
    close(field, [ratio(layer[i]) for layer in layers])


@functools.partial(jax.jit, static_argnums=(0, 3))
def probed(config, params, ids, chunk):
  return Transformer(config).apply({'params': params}, ids, cache=analysis.Probe(chunk=chunk))


@pytest.mark.parametrize('name', CONFIGS)
def test_probe_changes_no_logits_and_chunks_change_nothing(name):
  lm, ids = model(name), tokens()
  logits, probe = probed(lm.config, lm.params, ids, 64)
  np.testing.assert_allclose(logits, record(lm, ids)[0], atol=1e-5)
  if name in ('softmax, key and value slot', 'identity, alibi, window, prefix'):
    chunked_logits, chunked = probed(lm.config, lm.params, ids, 7)
    np.testing.assert_allclose(chunked_logits, logits, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), probe.layers, chunked.layers)


@pytest.mark.parametrize('name', CONFIGS)
def test_kernels_measure_what_chunks_do(name, monkeypatch):
  """In their XLA form; rules that they do not know are left to the chunks."""
  lm, ids, taken = model(name), tokens(), []
  logits, probe = probed(lm.config, lm.params, ids, 64)
  received = mass.received
  monkeypatch.setattr(mass, 'is_default', lambda rule, length: mass.knows(rule))
  monkeypatch.setattr(mass, 'received', lambda *args: taken.append(1) or received(*args))
  # Traced anew: the change is no part of what a program is compiled for.
  run = lambda params, ids: probed.__wrapped__(lm.config, params, ids, 64)
  with_kernels = jax.jit(run)(lm.params, ids)
  assert bool(taken) == name.startswith(('softmax', 'sigmoid'))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
  jax.tree.map(close, with_kernels, (logits, probe))


@pytest.mark.parametrize('operation, kernels', [('softmax', False), ('softmax', True), ('identity_norm', False)])
def test_no_array_has_the_size_of_the_maps_of_32768_tokens(operation, kernels, monkeypatch):
  length = 32768
  monkeypatch.setattr(mass, 'is_default', lambda rule, length: kernels)
  q = jax.ShapeDtypeStruct((1, length, 4, 64), jnp.float32)
  rule = AttentionRule(operation, 0.1)
  program = jax.make_jaxpr(lambda q, k, v: analysis.Probe().attend(0, q, k, v, None, rule))(q, q, q)
  largest = max(int(np.prod(shape or (1,))) for shape in shapes_in(program.jaxpr))
  assert largest <= 4 * length * 128 < 4 * length**2 // 100


@pytest.mark.parametrize('name', ['softmax', 'sigmoid, key slot'])
def test_sums_for_evaluation_leave_out_rows_without_weight(name):
  lm, ids = model(name), tokens()
  weight_B = jnp.array([1.0, 0.0, 2.0])
  sums = jax.jit(analysis.sink_sums, static_argnums=0)(lm.config, lm.params, ids, weight_B)
  report = analysis.sinks(lm, ids[[0, 2, 2]], chunk=7, batch_size=2)
  expected = {f'sink_{k + 1}': report.sink_proxy[0, k + report.first] for k in range(10)}
  expected |= {'sink_raw_1': report.sink_raw[0, report.first], 'row_mass': report.row_mass.mean()}
  expected |= {f'hidden_ratio_layer_{i}': x for i, x in enumerate(report.hidden_norm_ratio)}
  expected |= {'sink_slot': report.sink_proxy[0, 0]} if report.slot else {}
  assert sums.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_allclose(sums[key] / 3, value, rtol=2e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize('changes', [{}, {'windows': (0, 6), 'local_rope_theta': 50.0}])
def test_angles_are_those_of_positioned_queries_and_keys(changes):
  lm, ids = model('softmax'), tokens(1)
  lm = LanguageModel(lm.config.replace(**changes), lm.params)
  q_BTNH, k_BTKH = record(lm, ids)[2][1][:2]
  q_TH, k_TH = np.asarray(q_BTNH)[0, :, 3], np.asarray(k_BTKH)[0, :, 1]
  dot, cos, size = analysis.qk_angles(lm, ids[0], layer=1, head=3)
  lower = np.tri(T, dtype=bool)
  assert all(np.isnan(x[~lower]).all() for x in (dot, cos, size))
  np.testing.assert_allclose(dot[lower], (q_TH @ k_TH.T)[lower], atol=1e-4)
  np.testing.assert_allclose((cos * size)[lower], dot[lower], atol=1e-4)
  np.testing.assert_allclose(size[5, 2], np.linalg.norm(q_TH[5]) * np.linalg.norm(k_TH[2]), rtol=1e-5)
  with pytest.raises(ValueError, match='head=4 is not one of the 4'):
    analysis.qk_angles(lm, ids[0], layer=0, head=4)


@pytest.mark.parametrize(
  'ids, options, words',
  [
    (np.zeros((2, 15), int), {}, '15 tokens are too few'),
    (np.full((2, 16), 50), {}, '50 is not in .* of 50'),
    (np.full((2, 16), -1), {}, '-1 is not in'),
    (np.zeros((2, 16)), {}, 'integers'),
    (np.zeros(16, int), {}, r'shape \(16,\)'),
    (np.zeros((2, 16), int), {'chunk': 0}, 'chunk=0'),
    (np.zeros((2, 16), int), {'eps': ()}, 'threshold'),
  ],
)
def test_tokens_that_cannot_be_measured_are_refused(ids, options, words):
  with pytest.raises(ValueError, match=words):
    analysis.sinks(model('softmax'), ids, **options)


# ---- one token repeated ----

jitted_weights = jax.jit(attention_weights)


@pytest.mark.parametrize('position', ['none', 'alibi', 'rope'])
def test_repeated_tokens_have_no_first_among_them(position):
  config = TINY.replace(position=position)
  CONFIGS.setdefault(position, config)
  lm = model(position)
  _, states, layers = record(lm, np.full((1, T), 7))
  for x_1TD in states:
    np.testing.assert_allclose(x_1TD, np.broadcast_to(x_1TD[:, :1], x_1TD.shape), atol=1e-5)
  t_T1, lower = np.arange(1, T + 1)[:, None], np.tri(T, dtype=bool)
  for q, k, _, rule in layers:
    index_1T = jnp.arange(T)[None]
    maps_NTT = np.asarray(jitted_weights(q, k.swapaxes(1, 2), index_1T, index_1T, rule)[0]).reshape(-1, T, T)
    if position == 'none':
      np.testing.assert_allclose(maps_NTT, np.broadcast_to(lower / t_T1, maps_NTT.shape), atol=1e-6)
    elif position == 'alibi':
      slope_N11 = 2.0 ** (-8 * np.arange(1, 5) / 4)[:, None, None]
      bias_NTT = np.where(lower, np.exp(-slope_N11 * (t_T1 - t_T1.T)), 0)
      np.testing.assert_allclose(maps_NTT, bias_NTT / bias_NTT.sum(-1, keepdims=True), atol=1e-6)
    else:
      x_N = np.linalg.norm(q[0], axis=-1)[0] * np.repeat(np.linalg.norm(k[0], axis=-1)[0], 2) / config.head_dim**0.5
      assert x_N.max() > 0.5, 'too even to be a test'
      top_NT = np.exp(2 * x_N)[:, None]
      assert (maps_NTT.max(-1) <= top_NT / (top_NT + t_T1.T - 1) + 1e-6).all()
      assert np.ptp(maps_NTT[:, -1], axis=-1).max() > 1e-3


def test_learned_positions_tell_repeated_tokens_apart():
  _, states, _ = record(tiny_model(TINY.replace(position='learned')), np.full((1, T), 7))
  assert np.ptp(np.asarray(states[-1])[0], axis=0).max() > 0.1


# ---- inputs and the command ----
