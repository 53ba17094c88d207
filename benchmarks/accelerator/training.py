"""A training step of a Llama in bfloat16: tokens per second, the share of the chip's matrix product speed, and memory.

The step has all parts: forward, loss, backward, clipping, AdamW on float32 parameters. It counts 6 operations for each matrix
parameter and token, and those of attention over the keys that a token sees.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator import chip
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting, Training
from benchmarks.accelerator.timing import Compiled, matrix_params, random_params, seconds
from jaxlm.config import ModelConfig
from trainers.config import OptimizerConfig
from trainers.next_token import next_token_loss
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step


def cases(setting: Setting) -> Iterator[Case]:
  variants = {}
  for size, training in setting.trained.items():
    for attention in ('softmax', 'sigmoid'):
      model = training.model.replace(
        attention=attention, attention_offset='neg_log_n' if attention == 'sigmoid' else 0.0
      )
      variants[size, attention] = model, training, False
    if len(variants) == 2:  # Of one size.
      variants[size, 'softmax, documents packed'] = training.model, training, True
  programs = Compiled({name: functools.partial(lowered, *variant) for name, variant in variants.items()})
  programs.wait()
  peak = chip.peak(setting)
  for (size, attention), variant in variants.items():
    labels = {'model': size, 'attention': attention}
    yield Case(
      'training step', labels, lambda name=(size, attention), v=variant: ours(programs[name], *v, peak, setting)
    )


def make_step(model: ModelConfig) -> tuple[Callable, Any]:
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, warmup_steps=0), steps=1000)
  return make_train_step(lambda p, b, _: next_token_loss(p, b, model), optimizer.tx), optimizer.tx


def batch_of(training: Training, packed: bool) -> dict[str, jax.Array]:
  """Returns a batch of random tokens; packed: each row has two documents, which do not attend to each other."""
  shape = training.batch, training.length
  tokens = jax.random.randint(jax.random.key(1), shape, 0, training.model.vocab_size)
  batch = {'tokens': tokens, 'targets': jnp.roll(tokens, -1, axis=1), 'mask': jnp.ones(shape, jnp.float32)}
  if packed:
    half = jnp.broadcast_to(jnp.arange(training.length) // (training.length // 2), shape)
    positions = jnp.broadcast_to(jnp.arange(training.length) % (training.length // 2), shape)
    batch |= {'segments': 1 + half.astype(jnp.int32), 'positions': positions.astype(jnp.int32)}
  return batch


def lowered(model: ModelConfig, training: Training, packed: bool):
  step, tx = make_step(model)
  state = jax.eval_shape(lambda: init_state(random_params(model, 'float32'), tx))
  return jax.jit(step, donate_argnums=0).lower(state, jax.eval_shape(lambda: batch_of(training, packed)))


def ours(
  program, model: ModelConfig, training: Training, packed: bool, peak: float, setting: Setting
) -> dict[str, Any]:
  state = init_state(random_params(model, 'float32'), make_step(model)[1])
  batch, losses = batch_of(training, packed), []

  def step():
    nonlocal state
    state, metrics = program(state, batch)
    losses.append(metrics['loss'])
    return metrics['loss']

  taken = seconds(step, setting.min_seconds, setting.repeats)
  memory = program.memory_analysis()
  sizes = {} if memory is None else {
    'state GB': memory.argument_size_in_bytes / 1e9, 'beside it GB': memory.temp_size_in_bytes / 1e9
  }  # fmt: skip
  steps = {'steps': len(losses), 'first loss': float(losses[0]), 'last loss': float(losses[-1])}
  return measured(training, taken, peak) | sizes | steps


def measured(training: Training, taken: float, peak: float) -> dict[str, float]:
  m, tokens = training.model, training.batch * training.length
  attention = 6 * m.num_layers * m.num_heads * m.head_dim * training.length  # Half of the keys, on average.
  flops = tokens * (6 * matrix_params(m) + attention)
  return {
    'tokens': tokens, 'ms': 1e3 * taken, 'tokens/s': tokens / taken, 'TFLOP/s': flops / taken / 1e12,
    'of matrix product': flops / taken / peak,
  }  # fmt: skip
