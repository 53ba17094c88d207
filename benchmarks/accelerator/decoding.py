"""Decoding a random Llama in bfloat16 over caches of several kinds: tokens a second, and what the device holds for them.

A step reads all weights and the whole cache once, so that its time is a bandwidth too: it is shown as a share of what a copy
reaches. Caches are filled with random numbers; half of the layers are lazy in the cut ones.
"""

from collections.abc import Callable, Iterator
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import chip
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, live_bytes, matrix_params, random_params, seconds
from benchmarks.accelerator.training import torch_model
from decoders import plain
from decoders.lazy_memory import Keep, compact, compact_row
from decoders.simlayerkv import KiviConfig, LazyConfig
from jaxlm.caches.full import FullCache
from jaxlm.caches.layered import LayeredCache, pooled
from jaxlm.config import ModelConfig
from jaxlm.lengths import bucket

CALLS = 2  # Warm-up calls of a program, beside those that are timed.


def kinds(setting: Setting) -> dict[str, LazyConfig | None]:
  """Returns what is kept by each kind of cache; None: the plain decoder's own."""
  half = setting.decoded.num_layers // 2
  lazy = LazyConfig(n_initial=4, n_recent=setting.kept - 4, n_full=half, layout='static')
  quant = KiviConfig() if not setting.tiny else KiviConfig(4, 16, 16)
  return {
    'full': None,
    'lazy': lazy,
    '4 bits': lazy.replace(n_full=setting.decoded.num_layers, quant=quant),
    'lazy, 4 bits': lazy.replace(quant=quant),
  }


def cases(setting: Setting) -> Iterator[Case]:
  config = setting.decoded
  params = random_params(config, 'bfloat16')
  shapes = {}
  for batch in setting.batches:
    for context in setting.contexts:
      for name, keep in kinds(setting).items():
        if context > setting.kept or 'lazy' not in name:
          shapes[batch, context, name] = keep
  programs = Compiled({at: functools.partial(lowered, setting, params, at, keep) for at, keep in shapes.items()})
  programs.wait()
  bandwidth = 1e9 * chip.copy(setting)['GB/s']
  for at, keep in shapes.items():
    labels = dict(zip(('batch', 'context', 'cache'), at))
    run = lambda at=at, keep=keep: ours(programs[at], setting, params, state_of(setting, at, keep), bandwidth)
    yield Case('decoding', labels, run)
  context = setting.contexts[len(setting.contexts) // 2]
  for batch in setting.batches:
    labels = {'batch': batch, 'context': context, 'cache': 'lazy, pooled (the default layout)'}
    yield Case('decoding', labels, lambda b=batch: in_pools(setting, params, (b, context, 'lazy'), bandwidth))
  yield Case('reading a prompt', {'tokens': context}, lambda: prefill(setting, params, context))
  yield from peers(setting, context)


def capacity(setting: Setting, context: int) -> int:
  return context + setting.new_tokens * (setting.repeats + CALLS)


def layer(setting: Setting, batch: int, context: int, seed) -> tuple[jax.Array, jax.Array]:
  """Returns random keys and values of one layer."""
  c = setting.decoded
  shape = (batch, c.num_kv_heads, bucket(capacity(setting, context)), c.head_dim)
  return tuple(jax.random.normal(key, shape, c.dtype) for key in jax.random.split(jax.random.key(seed)))


def state_of(setting: Setting, at: tuple[int, int, str], keep: LazyConfig | None) -> plain.DecodeState:
  """Returns rows that have read `context` tokens, over a cache of this kind."""
  (batch, context, _), c = at, setting.decoded
  room, lengths = capacity(setting, context) - context, jnp.full(batch, context, jnp.int32)
  make = jax.jit(functools.partial(layer, setting, batch, context))
  layers = []
  for i in range(c.num_layers):
    keys, values = make(i)
    if keep is not None:
      layers.append(compact(keys, values, lengths, None, keep=Keep(keep, room), cut=i >= keep.n_full))
    else:
      layers.append((keys, values))
  if keep is not None:
    return begun(LayeredCache(tuple(layers)), batch, context, room)
  keys, values = zip(*layers)
  return begun(FullCache(keys, values, (False,) * c.num_layers), batch, context, room)


def begun(cache: Any, batch: int, context: int, room: int) -> plain.DecodeState:
  ints = lambda value: jnp.full(batch, value, jnp.int32)
  return plain.DecodeState(
    tokens=jnp.zeros((batch, room), jnp.int32), last=ints(1), position=ints(context), lengths=ints(0),
    done=jnp.zeros(batch, bool), keys=plain.row_keys(0, 0, batch), seen=None, total=ints(context + room), cache=cache,
  )  # fmt: skip


def lowered(setting: Setting, params: Any, at: tuple[int, int, str], keep: LazyConfig | None):
  return lowered_for(setting, params, jax.eval_shape(lambda: state_of(setting, at, keep)))


def lowered_for(setting: Setting, params: Any, state: Any):
  return plain.decode.lower(params, state, jnp.int32(1), jnp.asarray([-1]), {}, config=setting.decoded)


def ours(program, setting: Setting, params: Any, state: plain.DecodeState, bandwidth: float) -> dict[str, Any]:
  held, batch, taken = state.cache.nbytes, len(state.last), []
  jax.block_until_ready(state)
  live = live_bytes()
  steps, none = jnp.int32(setting.new_tokens), jnp.asarray([-1])
  for _ in range(setting.repeats + CALLS):
    start = time.perf_counter()
    state, _ = jax.block_until_ready(program(params, state, steps, none, {}))
    taken.append((time.perf_counter() - start) / setting.new_tokens)
  step = float(np.median(taken[CALLS:]))
  read = 2 * matrix_params(setting.decoded) + held
  del state
  freed = {} if live is None else {'device MB': (live - live_bytes()) / 1e6}
  return {
    'ms a step': 1e3 * step, 'tokens/s': batch / step, 'cache MB': held / 1e6, **freed, 'GB/s': read / step / 1e9,
    'of copy': read / step / bandwidth,
  }  # fmt: skip


def in_pools(setting: Setting, params: Any, at: tuple[int, int, str], bandwidth: float) -> dict[str, Any]:
  (batch, context, _), c, keep = at, setting.decoded, kinds(setting)['lazy']
  room = capacity(setting, context) - context
  lengths, make = jnp.full(batch, context, jnp.int32), jax.jit(functools.partial(layer, setting, batch, context))
  made: dict[int, Any] = {}

  def row(i: int, b: int):
    arrays = made.setdefault(i, make(i))
    return compact_row(*arrays, lengths, None, jnp.int32(b), keep=Keep(keep, room), cut=i >= keep.n_full)

  lazy_LB = np.repeat((np.arange(c.num_layers) >= keep.n_full)[:, None], batch, axis=1).astype(int)
  cache = pooled(lazy_LB, 2, row, lambda i: made.pop(i))
  state = begun(cache, batch, context, room)
  del cache
  return ours(lowered_for(setting, params, state).compile(), setting, params, state, bandwidth)


def prefill(setting: Setting, params: Any, tokens: int) -> dict[str, float]:
  c, one = setting.decoded, lambda x: jnp.full(1, x, jnp.int32)
  args = params, jax.random.randint(jax.random.key(0), (1, tokens), 0, c.vocab_size), one(tokens), one(tokens)
  run = plain.prefill.lower(*args, config=c, capacity=tokens).compile()
  taken = seconds(lambda: run(*args), setting.min_seconds, setting.repeats)
  per_token = 2 * (matrix_params(c) - c.vocab_size * c.model_dim) + 2 * c.num_layers * c.num_heads * c.head_dim * tokens
  return {'ms': 1e3 * taken, 'tokens/s': tokens / taken, 'TFLOP/s': tokens * per_token / taken / 1e12}


def peers(setting: Setting, context: int) -> Iterator[Case]:
  """transformers, eager, over a DynamicCache of random numbers."""
  lazily: Callable[[], Any] = functools.cache(lambda: peer_model(setting.decoded))
  for batch in setting.batches:
    labels = {'batch': batch, 'context': context, 'cache': 'transformers, full'}
    yield Case('decoding', labels, lambda b=batch: peer(setting, lazily(), b, context))


def peer_model(config: ModelConfig):
  try:
    import torch
  except ImportError:
    return None
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  return torch_model(config, device, 'bfloat16').eval()


def peer(setting: Setting, model: Any, batch: int, context: int) -> dict[str, Any]:
  if model is None:
    return {'skipped': 'PyTorch is not installed'}
  import torch
  import transformers

  c, device, taken = setting.decoded, model.device, []
  cache, shape = transformers.DynamicCache(), (batch, c.num_kv_heads, context, c.head_dim)
  draw = lambda: torch.randn(shape, device=device, dtype=torch.bfloat16)
  for i in range(c.num_layers):
    cache.update(draw(), draw(), i)
  token = torch.ones((batch, 1), dtype=torch.long, device=device)
  with torch.inference_mode():
    for step in range(setting.new_tokens):
      start = time.perf_counter()
      at = torch.full((batch, 1), context + step, device=device)
      token = model(token, past_key_values=cache, position_ids=at).logits[:, -1:].argmax(-1)
      if device.type == 'cuda':
        torch.cuda.synchronize()
      taken.append(time.perf_counter() - start)
  step = float(np.median(taken[len(taken) // 4 :]))
  return {'ms a step': 1e3 * step, 'tokens/s': batch / step}
