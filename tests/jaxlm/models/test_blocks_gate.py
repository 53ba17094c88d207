"""The gate on attention's output (https://arxiv.org/abs/2505.06708): sigmoid(x W) by loops, and what a gate of one half does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models import functions
from tests.models import TINY, apply, init

B, T, N, H, D = 2, 3, TINY.num_heads, TINY.head_dim, TINY.model_dim
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (B, T)).astype(np.int32)


@pytest.mark.parametrize('kind', ['head', 'element'])
def test_outputs_of_heads_are_multiplied_by_the_gate_of_their_token(kind):
  config = TINY.replace(output_gate=kind, num_layers=1)
  layer = init(config, jax.random.key(0))['layer_0']
  rng = np.random.default_rng(1)
  out, x = rng.standard_normal((B, T, N, H)).astype(np.float32), rng.standard_normal((B, T, D)).astype(np.float32)
  gate, o = (np.asarray(layer['attention'][name]['kernel'], np.float64) for name in ('output_gate', 'o'))
  assert gate.shape == (D, N, H if kind == 'element' else 1)
  expected = np.zeros((B, T, D))
  for b in range(B):
    for t in range(T):
      for n in range(N):
        for h in range(H):
          g = 1 / (1 + np.exp(-x[b, t] @ gate[:, n, h if kind == 'element' else 0]))
          expected[b, t] += g * out[b, t, n, h] * o[n, h]
  np.testing.assert_allclose(functions.mix(layer, config, 0, jnp.asarray(out), jnp.asarray(x)), expected, atol=1e-5)
  with pytest.raises(ValueError, match=f"output_gate='{kind}' reads the input of attention: pass it to `mix`"):
    functions.mix(layer, config, 0, jnp.asarray(out))


def test_a_gate_of_one_half_halves_the_attention_and_gates_learn():
  config = TINY.replace(output_gate='head')
  params = init(config, jax.random.key(0))
  names = [name for name in params if name.startswith('layer_')]

  def with_attention(change):
    return params | {name: params[name] | {'attention': change(dict(params[name]['attention']))} for name in names}

  def halved(attention):
    del attention['output_gate']
    return attention | {'o': {'kernel': attention['o']['kernel'] / 2}}

  zero = with_attention(lambda a: a | {'output_gate': {'kernel': jnp.zeros_like(a['output_gate']['kernel'])}})
  logits, _ = apply(config, zero, TOKENS)
  np.testing.assert_allclose(logits, apply(TINY, with_attention(halved), TOKENS)[0], atol=1e-5)
  assert abs(apply(config, params, TOKENS)[0] - logits).max() > 1e-3
  gradients = jax.jit(jax.grad(lambda p: jnp.square(apply(config, p, TOKENS)[0]).sum()))(zero)
  assert all(abs(gradients[name]['attention']['output_gate']['kernel']).max() > 0 for name in names)
