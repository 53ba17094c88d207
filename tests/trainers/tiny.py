"""A language model and a task so small that a run takes a second; also a command that tests start, stop and kill.

python -m tests.trainers.tiny --run.directory DIR --run.steps 6 ...
"""

import dataclasses
import os
from pathlib import Path
import subprocess
import sys

from jaxlm.config import ModelConfig
from trainers.config import OptimizerConfig, RunConfig, TrainConfig

B, T = 8, 6
MODEL = ModelConfig(
  vocab_size=18,
  num_layers=1,
  model_dim=8,
  num_heads=4,
  num_kv_heads=2,
  head_dim=2,
  mlp_dim=12,
  max_length=T,
  dtype='float32',
)


@dataclasses.dataclass(frozen=True)
class TinyConfig(TrainConfig):
  """A tiny language model on made-up tokens."""

  model: ModelConfig = MODEL
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.02, schedule='cosine', warmup_steps=2)
  run: RunConfig = RunConfig(steps=8, log_every=1, eval_every=4, save_every=2, tensorboard=False)
  batch_size: int = B
  slow: float = 0.0
  """Seconds that a batch takes to read."""
  bad_step: int = -1
  """This batch has weights that are not a number."""


def config(directory, **run) -> TinyConfig:
  base = TinyConfig()
  return dataclasses.replace(base, run=dataclasses.replace(base.run, directory=str(directory), **run))


def make_batch(step: int, rows: slice = slice(None), batch_size: int = B):
  """Counting tokens, which a model learns at once; rows differ in padding, so devices differ in weight."""
  import numpy as np

  rng = np.random.default_rng([7, step])
  start_B1 = rng.integers(1, MODEL.vocab_size, (batch_size, 1))
  tokens_BS = ((start_B1 + np.arange(T + 1)) % MODEL.vocab_size).astype(np.int32)
  length_B1 = rng.integers(1, T + 1, (batch_size, 1))
  batch = {
    'tokens': tokens_BS[:, :-1],
    'targets': tokens_BS[:, 1:],
    'mask': (np.arange(T) < length_B1).astype(np.float32),
  }
  return {name: x[rows] for name, x in batch.items()}


def make_task(config: TinyConfig):
  """Returns the task of a config. JAX is imported here, after the caller has chosen its devices."""
  import time

  import numpy as np

  from jaxlm.models.transformer import init_params
  from trainers import loop
  from trainers.next_token import next_token_loss

  class TinyTask(loop.Task):
    trainer = 'tiny'
    batch_size = config.batch_size

    def init_params(self, key):
      return init_params(config.model, key)

    def loss(self, params, batch, context):
      return next_token_loss(params, batch, config.model, context.key)

    def batch(self, step, rows):
      time.sleep(config.slow)
      batch = make_batch(step, rows, config.batch_size)
      if step == config.bad_step:
        batch['mask'] = batch['mask'] * np.nan
      return batch

    def eval_batches(self, rows):
      return (make_batch(1000 + i, rows, config.batch_size) for i in range(2))

  return TinyTask()


def fit(config: TinyConfig):
  from trainers import loop

  return loop.fit(make_task(config), config)


def command(*flags: str, module: str = 'tests.trainers.tiny') -> list[str]:
  return [sys.executable, '-m', module, *flags]


def environment(devices: int = 1) -> dict[str, str]:
  """Returns the environment of a command: CPU devices, and the suite's compilation cache."""
  import jax

  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_COMPILATION_CACHE_DIR': str(jax.config.jax_compilation_cache_dir),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }


def start(*flags: str, devices: int = 1, **kwargs) -> subprocess.Popen:
  root = Path(__file__).parents[2]
  return subprocess.Popen(
    command(*flags, **kwargs),
    cwd=root,
    env=environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


if __name__ == '__main__':
  from trainers import command_line

  presets = {'tiny': ('Tiny.', TinyConfig())}
  command_line.run(fit, command_line.parse(presets, 'tiny', prog='tiny', description='Tiny.'))
