"""Gated retrieval: a task on which one attention layer grows a sink within a few hundred steps.

  tokens   x_1 a fixed symbol (or a random content symbol); then content symbols, iid uniform, and from the 3rd position on
           triggers with probability .15, never two in a row
  target   y_t = answer[x_{t-1}], a fixed random 16-vector, where x_t is a trigger; 0 elsewhere
  loss     the mean of (o_t - y_t)^2 over positions and dimensions

At a trigger the layer must retrieve the token before it; at all other positions it must add nothing. Attention weights that sum to 1
must still go somewhere, and they go to a token that is always present. The task imitates "When Attention Sink Emerges in Language
Models" (https://arxiv.org/abs/2410.10781). The model should have one block, because with two either one could solve the task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.models import functions
from jaxlm.models.transformer import init_params
from trainers.config import OptimizerConfig
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

FirstToken = Literal['fixed', 'random']
FIXED, CONTENT, TRIGGERS = 0, 29, 3  # symbol 0; symbols 1 .. 29; symbols 30 .. 32
FIRST_TRIGGER = 1 + CONTENT
VOCAB = FIRST_TRIGGER + TRIGGERS
TRIGGER_RATE = 0.15
ANSWER_DIM = 16
BATCH, LENGTH = 32, 64

# Embeddings are tied because the task has its own output matrix, so an output layer of the model would be unused.
MODEL = ModelConfig(
  vocab_size=VOCAB, num_layers=1, model_dim=64, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=128, max_length=LENGTH,
  tied_embeddings=True, dtype='float32',
)  # fmt: skip
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=100, schedule='constant', weight_decay=0.0, clip_norm=1.0)


def answers() -> Float[Array, 'V C']:
  """Returns the answer vector of each symbol; C = 16."""
  return jax.random.normal(jax.random.key(16), (VOCAB, ANSWER_DIM))


def retrieval_batch(
  key: Array, batch: int = BATCH, *, length: int = LENGTH, first_token: FirstToken = 'fixed'
) -> tuple[Int[Array, 'B T'], Float[Array, 'B T C']]:
  """Returns (tokens, targets) as described in the module's docstring."""
  content_key, trigger_key, which_key = jax.random.split(key, 3)
  shape, t_1T = (batch, length), jnp.arange(length)[None]
  content_BT = jax.random.randint(content_key, shape, 1, FIRST_TRIGGER)
  if first_token == 'fixed':
    content_BT = content_BT.at[:, 0].set(FIXED)
  hit_BT = jax.random.bernoulli(trigger_key, TRIGGER_RATE, shape) & (t_1T >= 2)
  # Never two in a row: of a run of hits, the 1st, 3rd, ... are triggers, as if each looked at the one before.
  last_miss_BT = jax.lax.cummax(jnp.where(hit_BT, 0, t_1T), axis=1)
  trigger_BT = hit_BT & ((t_1T - last_miss_BT) % 2 == 1)
  tokens_BT = jnp.where(trigger_BT, jax.random.randint(which_key, shape, FIRST_TRIGGER, VOCAB), content_BT)
  return tokens_BT, jnp.where(trigger_BT[..., None], answers()[jnp.roll(tokens_BT, 1, axis=1)], 0.0)


def init(config: ModelConfig, key: Array) -> dict[str, Any]:
  block_key, readout_key = jax.random.split(key)
  scale = (0.4 / config.model_dim) ** 0.5  # As in the library and the paper: N(0, 0.4 / fan_in).
  readout_DC = scale * jax.random.normal(readout_key, (config.model_dim, ANSWER_DIM))
  return {'transformer': init_params(config, block_key), 'readout': readout_DC}


def squared_error(config: ModelConfig, params: Any, tokens, targets) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns (sum of squared errors, number of predicted values)."""
  hidden_BTD, _ = functions.hidden(params['transformer'], config, tokens)
  error_BTC = hidden_BTD @ params['readout'] - targets
  return jnp.sum(error_BTC**2), jnp.asarray(error_BTC.size, jnp.float32)


def train(
  config: ModelConfig, first_token: FirstToken, steps: int, seeds: int
) -> tuple[list[Any], Float[Array, 'R S']]:
  """Returns (the parameters of each seed, the loss of each seed and step). All steps are one compiled scan."""
  tx = make_optimizer(OPTIMIZER, steps).tx
  train_step = make_train_step(lambda params, batch, _: squared_error(config, params, *batch), tx)

  @jax.jit
  def run(seed):
    init_key, data_key = jax.random.split(jax.random.key(seed))

    def one_step(state, step):
      state, metrics = train_step(state, retrieval_batch(jax.random.fold_in(data_key, step), first_token=first_token))
      return state, metrics['loss']

    state, losses = jax.lax.scan(one_step, init_state(init(config, init_key), tx), jnp.arange(steps))
    return state.params, losses

  params, losses = zip(*[run(seed) for seed in range(seeds)])
  return list(params), jnp.stack(losses)


def held_out(seed: int, first_token: FirstToken, rows: int = 100):
  """Returns the held-out batch on which a run is evaluated."""
  return retrieval_batch(jax.random.key(10_000 + seed), rows, first_token=first_token)


def mse(config: ModelConfig, params: Any, batch) -> float:
  error, count = jax.jit(squared_error, static_argnums=0)(config, params, *batch)
  return float(error / count)
