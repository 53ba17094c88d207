"""A deep, narrow byte model with redundant sub-layers, from stochastic depth (https://arxiv.org/abs/1603.09382) on real text.

  each step   a rate r is drawn from U(0, 0.9); each sub-layer, except in the first and the last layer, is skipped for all rows with
              probability r
  text        the text that ships with Python (`jaxlm.data.embedded`); every 20th document is held out

The trained model predicts most of its own tokens even when most sub-layers are skipped. It is trained once and kept in the cache
folder.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from benchmarks.made_before import facts_of
import jaxlm
from jaxlm import caches
from jaxlm.config import ModelConfig
from jaxlm.data import embedded
from jaxlm.data.corpus import cache_folder
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.models import functions
from jaxlm.models.transformer import init_params
from trainers.config import OptimizerConfig
from trainers.optimizer import make_optimizer
from trainers.step import TrainState, init_state, make_train_step

MODEL = ModelConfig(
  vocab_size=259, num_layers=24, model_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384, max_length=1024,
  tied_embeddings=False, dtype='float32',
)  # fmt: skip
HELD_OUT = 20  # One of so many documents is held out.


@dataclasses.dataclass(frozen=True)
class Setting:
  model: ModelConfig = MODEL
  steps: int = 600
  rows: int = 8
  length: int = 256
  highest_rate: float = 0.9
  optimizer: OptimizerConfig = OptimizerConfig(
    learning_rate=3e-3, warmup_steps=100, schedule='wsd', decay_fraction=0.25, weight_decay=0.1
  )
  seed: int = 0


def documents(held_out: bool) -> list[str]:
  return [text for i, text in enumerate(embedded.read()) if (i % HELD_OUT == 0) == held_out]


def loss(setting: Setting, params, tokens_BT, key):
  """Returns (sum of -log p of the bytes, with sub-layers left out; their number)."""
  config, cache = setting.model, caches.Sequence()
  rate_key, drop_key = jax.random.split(key)
  rate = jax.random.uniform(rate_key, maxval=setting.highest_rate)
  runs_2L = jax.random.bernoulli(drop_key, 1 - rate, (config.num_layers, 2)).at[jnp.array([0, -1])].set(True)
  x_BTD, positions, scheme = functions.embedded(params, config, tokens_BT[:, :-1])

  # One compiled layer for all, and what is left out is not computed.
  def layer(x_BTD, weights_and_runs):
    weights, runs_2 = weights_and_runs
    attention_block = lambda x: functions.attention_block(weights, config, 1, x, positions, scheme, cache)[0]
    after_BTD = jax.lax.cond(runs_2[0], attention_block, lambda x: x, x_BTD)
    mlp_block = lambda after: functions.mlp_block(weights, config, 1, after, x_BTD)
    return jax.lax.cond(runs_2[1], mlp_block, lambda after: after, after_BTD), None

  layers = [params[f'layer_{i}'] for i in range(config.num_layers)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
  x_BTD, _ = jax.lax.scan(layer, x_BTD, (stacked, runs_2L))
  logits = functions.logits(params, config, functions.normed(params, config, x_BTD))
  nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BT[:, 1:])
  return nll_BT.sum(), jnp.float32(nll_BT.size)


@functools.cache
def text(held_out: bool) -> np.ndarray:
  """Returns the documents as one row of ids, each with its end."""
  tokenizer = ByteTokenizer()
  return np.concatenate([np.array(tokenizer.encode(t, eos=True), np.int32) for t in documents(held_out)])


def train(setting: Setting) -> tuple[Any, np.ndarray]:
  """Returns (parameters, the loss of each step)."""
  tx = make_optimizer(setting.optimizer, setting.steps).tx
  step = jax.jit(
    make_train_step(lambda p, b, context: loss(setting, p, b, context.key), tx, seed=setting.seed), donate_argnums=0
  )
  params = jax.jit(functools.partial(init_params, setting.model))(jax.random.key(setting.seed))
  state: TrainState = init_state(params, tx)
  ids, rng, losses = text(False), np.random.default_rng(setting.seed), []
  bar = tqdm.trange(setting.steps, desc='stochastic depth', mininterval=5)
  for _ in bar:
    first_B1 = rng.integers(0, len(ids) - setting.length - 1, (setting.rows, 1))
    state, metrics = step(state, ids[first_B1 + np.arange(setting.length + 1)])
    losses.append(float(metrics['loss']))
    bar.set_postfix(loss=f'{np.mean(losses[-50:]):.3f}', refresh=False)
  return state.params, np.array(losses)


def folder(setting: Setting = Setting()) -> Path:
  """Returns the folder of the trained model in the cache folder. The key is the code and the setting."""
  made_by = json.dumps(facts_of(setting)) + ''.join(map(inspect.getsource, (documents, loss, train)))
  facts = made_by + str(embedded.facts())
  return cache_folder() / 'trained' / f'stochastic-depth-{hashlib.sha256(facts.encode()).hexdigest()[:16]}'


def trained(setting: Setting = Setting()) -> jaxlm.LanguageModel:
  """Returns the trained model from the cache folder; if it is not there, trains it first."""
  place = folder(setting)
  if not (place / 'config.json').exists():  # Written last.
    lm = jaxlm.LanguageModel(setting.model, train(setting)[0], ByteTokenizer())
    jaxlm.save_huggingface(lm, place, overwrite=True)
  return jaxlm.load(place, dtype='float32')


def prompts(count: int, length: int, seed: int = 0) -> Sequence[list[int]]:
  """Returns `count` random pieces of `length` bytes from held-out documents."""
  ids, rng = text(True), np.random.default_rng(seed)
  return [ids[first : first + length].tolist() for first in rng.integers(0, len(ids) - length, count)]
