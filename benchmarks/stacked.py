"""python -m benchmarks.stacked: shows why jaxlm unrolls the layers.

It times the same decode steps with separate weights for each layer, and with the weights of all layers stacked for a scan.
"""

import dataclasses

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console


@dataclasses.dataclass(frozen=True)
class Config:
  """Unrolled layers compared with stacked layers, float32."""

  layers: int = 8
  dim: int = 512
  mlp_dim: int = 1376
  heads: int = 8
  vocab: int = 32000
  capacity: int = 256
  steps: int = 64
  batches: tuple[int, ...] = (1, 8)
  repeats: int = 7


def main(config: Config) -> None:
  import jax
  import jax.numpy as jnp

  from jaxlm.attention.positions import rope_tables
  from jaxlm.caches import FullCache
  from jaxlm.config import ModelConfig
  from jaxlm.models import functions
  from jaxlm.models.transformer import init_params

  model = ModelConfig(
    vocab_size=config.vocab, num_layers=config.layers, model_dim=config.dim, num_heads=config.heads,
    num_kv_heads=config.heads, head_dim=config.dim // config.heads, mlp_dim=config.mlp_dim, max_length=config.capacity,
    dtype='float32',
  )  # fmt: skip
  params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
  apart = [params[f'layer_{i}'] for i in range(config.layers)]
  stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

  def layer(weights, x_B1D, position_B1, keys, values):
    cache = FullCache((keys,), (values,), empty=(False,))
    scheme = rope_tables(model, position_B1, 1), None
    x_B1D, cache = functions.block(weights, model, 0, x_B1D, position_B1, scheme, cache)
    return x_B1D, cache.keys[0], cache.values[0]

  def unrolled(x_B1D, position_B1, layers, keys, values):
    keys, values = list(keys), list(values)
    for i, weights in enumerate(layers):
      x_B1D, keys[i], values[i] = layer(weights, x_B1D, position_B1, keys[i], values[i])
    return x_B1D, keys, values

  def stacked(x_B1D, position_B1, layers, keys, values):
    def body(x_B1D, xs):
      x_B1D, *cache = layer(xs[0], x_B1D, position_B1, *xs[1:])
      return x_B1D, cache

    x_B1D, (keys, values) = jax.lax.scan(body, x_B1D, (layers, keys, values))
    return x_B1D, keys, values

  def decoder(all_layers):
    def decode(rest, layers, tokens_B, keys, values):
      def step(i, carry):
        tokens_B, keys, values = carry
        position_B1 = jnp.full((tokens_B.shape[0], 1), config.capacity // 2 + i)
        x_B1D = rest['embed']['embedding'][tokens_B][:, None]
        x_B1D, keys, values = all_layers(x_B1D, position_B1, layers, keys, values)
        logits_BV = x_B1D[:, 0] @ rest['head']
        return jnp.argmax(logits_BV, axis=-1), keys, values

      return jax.lax.fori_loop(0, config.steps, step, (tokens_B, keys, values))[0]

    return jax.jit(decode)

  rest = {name: params[name] for name in ('embed', 'head')}
  rows = []
  for batch in config.batches:
    cache = FullCache.create(model, batch, config.capacity)
    tokens_B = jnp.arange(batch)
    inputs = {
      'unrolled': (decoder(unrolled), rest, apart, tokens_B, list(cache.keys), list(cache.values)),
      'stacked': (decoder(stacked), rest, stack(apart), tokens_B, stack(cache.keys), stack(cache.values)),
    }
    tokens = {name: np.asarray(run(*args)) for name, (run, *args) in inputs.items()}
    assert (tokens['unrolled'] == tokens['stacked']).all()
    timed = {
      name: (lambda run=run, args=args: report.seconds(lambda: run(*args).block_until_ready()))
      for name, (run, *args) in inputs.items()
    }
    taken = report.in_turn(timed, config.repeats)
    ms = {name: 1e3 * float(np.median(times)) / config.steps for name, times in taken.items()}
    ratio = ms['stacked'] / ms['unrolled']
    rows.append(
      {'batch': batch, 'unrolled ms': ms['unrolled'], 'stacked ms': ms['stacked'], 'stacked / unrolled': ratio}
    )
  report.write('stacked', rows, config=dataclasses.asdict(config))


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
