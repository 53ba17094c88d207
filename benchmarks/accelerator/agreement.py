"""Checks that the chip gives the same tokens and losses as the host's CPU, in float32 with matrix products at highest precision.

Lossless decoders must also give the tokens of plain decoding on the chip.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import random_params
import decoders
from decoders.simlayerkv import LazyConfig
from decoders.speculative import PromptLookup
from decoders.swift import SwiftConfig
from decoders.swift.sets import SkipSet
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from trainers.config import OptimizerConfig
from trainers.next_token import next_token_loss
from trainers.optimizer import make_optimizer
from trainers.step import data_parallel, init_state, make_train_step

MODEL = ModelConfig(
  num_layers=4, model_dim=64, mlp_dim=128, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=256, max_length=256,
  dtype='float32',
)  # fmt: skip
NEW_TOKENS = 24
LAZY = LazyConfig(n_full=2, n_initial=2, n_recent=8, stage='prefill', layout='static')
SKIPPED = SwiftConfig(search=False, guard=False, skip=SkipSet(attention=(1, 2), mlp=(2,)), skip_ratio=0.75)
PLAIN = {
  'plain': {},
  'lazy': {'lazy': LAZY},
  'lazy, pooled': {'lazy': LAZY.replace(layout='pooled')},
  'prompt lookup': {'drafter': PromptLookup()},
  'SWIFT': {'swift': SKIPPED},
}
LOSSLESS = ('prompt lookup', 'SWIFT')


def cases(setting: Setting) -> Iterator[Case]:
  names = [name for name in PLAIN if not (setting.tiny and name.startswith('lazy'))]
  runs = [('softmax', name) for name in names] + [('sigmoid', 'plain')]
  here, host = jax.devices()[0], jax.devices('cpu')[0]
  # All runs at once, because most of their time is compiling. They are not timed.
  with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    generated = {(*run, d): pool.submit(generate, *run, d) for run in runs for d in {here, host}}
    trained = pool.submit(losses)
    for attention, name in runs:
      labels = {'decoder': name, 'attention': attention}
      results = [generated[attention, way, d] for way, d in ((name, here), (name, host), ('plain', here))]
      yield Case('tokens', labels, lambda name=name, results=results: compared(name, *(r.result() for r in results)))
    yield Case('losses of three steps', {}, trained.result)


def model(config: ModelConfig, device: jax.Device) -> LanguageModel:
  """Returns a model with large random weights, so that its likeliest token is well ahead of the others."""
  with jax.default_device(jax.devices('cpu')[0]):
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, random_params(config, 'float32'))
  return LanguageModel(config, jax.device_put(params, device))


def on(device: jax.Device, call: Callable[[], Any]) -> Any:
  with jax.default_device(device), jax.default_matmul_precision('highest'):
    return call()


def generate(attention: str, name: str, device: jax.Device) -> np.ndarray:
  config = MODEL.replace(attention=attention, attention_offset='neg_log_n' if attention == 'sigmoid' else 0.0)
  lm, options = model(config, device), PLAIN[name]
  rng = np.random.default_rng(0)
  prompts = [(list(rng.integers(0, 256, 6)) * 8)[:n] for n in (40, 23, 31)]  # Repeated tokens, for prompt lookup.
  way = {
    'drafter': decoders.speculative.generate,
    'lazy': decoders.simlayerkv.generate,
    'swift': decoders.swift.generate,
  }
  run = way[next(iter(options))] if options else decoders.generate
  return on(device, lambda: run(lm, prompts, max_new_tokens=NEW_TOKENS, eos_id=None, **options).tokens)


def compared(name: str, here: np.ndarray, host: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
  row = {'tokens': here.size, 'as on the CPU': int((here == host).sum()), 'different tokens': len(np.unique(here))}
  right = bool((here == host).all())
  if name in LOSSLESS:
    row['as plain decoding'] = int((here == plain).sum())
    right &= row['as plain decoding'] == here.size
  return row | {'right': right}


def losses() -> dict[str, Any]:
  rows = 2 * jax.local_device_count()
  batch = {
    'tokens': jax.random.randint(jax.random.key(1), (rows, 32), 0, 256),
    'targets': jax.random.randint(jax.random.key(2), (rows, 32), 0, 256),
    'mask': jnp.ones((rows, 32), jnp.float32),
  }
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=0), steps=100)
  config = MODEL.replace(num_layers=2)
  step = make_train_step(lambda p, b, _: next_token_loss(p, b, config), optimizer.tx)

  def three(step, batch, device) -> list[float]:
    state, found = init_state(model(config, device).params, optimizer.tx), []
    for _ in range(3):
      state, metrics = step(state, batch)
      found.append(float(metrics['loss']))
    return found

  here, cpu = jax.devices()[0], jax.devices('cpu')[0]
  compiled = jax.jit(step)
  jitted = on(here, lambda: three(compiled, batch, here))
  apart = jax.tree.map(lambda x: np.asarray(x).reshape(jax.local_device_count(), 2, *x.shape[1:]), batch)
  mapped = on(here, lambda: three(data_parallel(step), apart, here))
  host = on(cpu, lambda: three(compiled, jax.device_put(batch, cpu), cpu))
  far = lambda a, b: float(np.max(np.abs(np.subtract(a, b)) / np.abs(b)))
  row = {'jit': jitted[-1], 'pmap from jit': far(mapped, jitted), 'from the CPU': far(jitted, host)}
  return row | {'right': row['pmap from jit'] < 1e-5 and row['from the CPU'] < 1e-4}
