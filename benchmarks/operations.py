"""python -m benchmarks.operations: time of a training step with each attention operation, divided by that with softmax."""

import dataclasses

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console


@dataclasses.dataclass(frozen=True)
class Config:
  """A training step per attention operation, float32."""

  operations: tuple[str, ...] = ('softmax', 'sigmoid', 'sigmoid_norm', 'elu1', 'mlp')
  layers: int = 4
  dim: int = 256
  heads: int = 8
  mlp_dim: int = 512
  vocab: int = 1024
  batch: int = 8
  length: int = 256
  repeats: int = 11


def main(config: Config) -> None:
  import jax

  from jaxlm.config import ModelConfig
  from jaxlm.models.transformer import init_params
  from trainers.config import OptimizerConfig
  from trainers.next_token import next_token_loss
  from trainers.optimizer import make_optimizer
  from trainers.step import init_state, make_train_step

  shape = ModelConfig(
    vocab_size=config.vocab, num_layers=config.layers, model_dim=config.dim, num_heads=config.heads,
    num_kv_heads=config.heads, head_dim=config.dim // config.heads, mlp_dim=config.mlp_dim, max_length=config.length,
    dtype='float32',
  )  # fmt: skip
  ids = np.random.default_rng(0).integers(0, config.vocab, (config.batch, config.length + 1)).astype(np.int32)
  batch = jax.device_put(
    {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'mask': np.ones((config.batch, config.length), np.float32)}
  )
  optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), steps=1000)

  def timed(operation):
    model = shape.replace(attention=operation)
    step = jax.jit(make_train_step(lambda p, b, _: next_token_loss(p, b, model), optimizer.tx), donate_argnums=0)
    held = [init_state(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)), optimizer.tx)]

    def run():
      held[0], metrics = step(held[0], batch)
      return jax.block_until_ready(metrics)

    return lambda: report.seconds(run)

  taken = report.in_turn({operation: timed(operation) for operation in config.operations}, config.repeats)
  seconds = {operation: float(np.median(times)) for operation, times in taken.items()}
  # Each step is compared with the softmax step beside it, so that changes in machine speed affect both.
  ratio = lambda name: float(np.median(np.divide(taken[name], taken[config.operations[0]])))
  rows = [
    {'operation': name, 'ms': 1e3 * seconds[name], f'ratio to {config.operations[0]}': ratio(name)}
    for name in config.operations
  ]
  report.write('operations', rows, config=dataclasses.asdict(config))


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
