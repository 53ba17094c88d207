"""The model as pure functions: they are the modules' methods, and their parts make cross-attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches, models
from jaxlm.attention.attend import attend
from jaxlm.attention.positions import rope_tables
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.rows import heads_first
from jaxlm.models import functions
from tests.models import TINY, apply, init

TOKENS = jax.random.randint(jax.random.key(1), (2, 5), 0, TINY.vocab_size)


@pytest.fixture(scope='module')
def params():
  return init(TINY.replace(qk_norm=True), jax.random.key(0))


@pytest.mark.parametrize('changes', [{}, {'parallel_residual': True}, {'attention': 'kernel_elu1_norm'}])
def test_parts_make_the_whole(params, changes):
  """hidden is embedded, then attention and MLP of each layer, then normed; attention is project, attend, mix."""
  config = TINY.replace(qk_norm=True, **changes)

  @jax.jit
  def by_parts(params):
    x, positions, scheme = functions.embedded(params, config, TOKENS)
    for i in range(config.num_layers):
      layer, before = params[f'layer_{i}'], x
      if i == 0:
        x, _ = functions.attention_block(layer, config, i, x, positions, scheme, caches.Sequence())
      else:
        read = functions.attention_input(layer, config, i, x)
        q = functions.project_queries(layer, config, i, read, scheme[0])
        k, v = functions.project_keys_values(layer, config, i, read, scheme[0])
        rule = AttentionRule(config.attention, config.head_dim**-0.5)
        at = jnp.arange(TOKENS.shape[1])[None]
        x = x + functions.mix(layer, config, i, attend(q, heads_first(k), heads_first(v), at, at, rule))
      x = functions.mlp_block(layer, config, i, x, before)
    hidden = functions.normed(params, config, x)
    return functions.logits(params, config, hidden), hidden @ functions.output_matrix(params, config)

  whole, _ = apply(config, params, TOKENS)
  hidden, _ = models.hidden(params, config, TOKENS)
  np.testing.assert_allclose(models.logits(params, config, hidden), whole, atol=1e-5)
  for logits in by_parts(params):
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_queries_may_read_the_keys_of_another_sequence(params):
  """Cross-attention by numpy loops: T queries of one sequence over S keys and values of another, each at its positions."""
  config, layer_params = TINY.replace(qk_norm=True), params['layer_0']
  B, T, S, N, K, H = 2, 3, 6, 4, 2, 8
  x_BTD, y_BSD = (jax.random.normal(jax.random.key(i), (B, n, config.model_dim)) for i, n in ((1, T), (2, S)))
  tables = lambda n, start: rope_tables(config, start + jnp.broadcast_to(jnp.arange(n), (B, n)), 64)
  q = functions.project_queries(layer_params, config, 0, x_BTD, tables(T, 10))
  k, v = functions.project_keys_values(layer_params, config, 0, y_BSD, tables(S, 0))
  at_1T, at_1S = jnp.zeros((1, T), jnp.int32), jnp.zeros((1, S), jnp.int32)
  rule = AttentionRule('softmax', H**-0.5, causal=False)
  out = functions.mix(layer_params, config, 0, attend(q, heads_first(k), heads_first(v), at_1T, at_1S, rule))

  w = jax.tree.map(np.asarray, layer_params['attention'])

  def projected(x_TD, name, start):
    heads_TNH = np.einsum('td,dnh->tnh', x_TD, w[name]['kernel'])
    if name == 'v':
      return heads_TNH
    heads_TNH = heads_TNH / np.sqrt((heads_TNH**2).mean(-1, keepdims=True) + 1e-5) * w[f'{name}_norm']['scale']
    for t, n, i in np.ndindex(*heads_TNH.shape[:2], H // 2):
      angle = (start + t) * 10000.0 ** (-2 * i / H)
      a, b = heads_TNH[t, n, i], heads_TNH[t, n, i + H // 2]
      heads_TNH[t, n, i] = a * np.cos(angle) - b * np.sin(angle)
      heads_TNH[t, n, i + H // 2] = b * np.cos(angle) + a * np.sin(angle)
    return heads_TNH

  for b in range(B):
    q_TNH = projected(np.asarray(x_BTD[b]), 'q', 10)
    k_SKH, v_SKH = (projected(np.asarray(y_BSD[b]), name, 0) for name in 'kv')
    for t in range(T):
      heads = []
      for n in range(N):
        logits_S = k_SKH[:, n // (N // K)] @ q_TNH[t, n] * H**-0.5
        weights_S = np.exp(logits_S) / np.exp(logits_S).sum()
        heads.append(weights_S @ v_SKH[:, n // (N // K)])
      np.testing.assert_allclose(out[b, t], np.einsum('nh,nhd->d', heads, w['o']['kernel']), atol=1e-4)


def test_hidden_and_logits_are_where_people_look():
  assert models.hidden is functions.hidden and models.logits is functions.logits
  assert {'hidden', 'logits'} <= set(dir(models))
