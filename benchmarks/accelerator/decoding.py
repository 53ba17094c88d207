"""Decoding of a random Llama in bfloat16 over several kinds of cache: tokens per second, and bytes on the device.

A step reads all weights and the whole cache once, so its time gives a bandwidth, which is shown as a share of a copy's. Caches are
filled with random numbers. In cut caches half of the layers are lazy.
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
from decoders import prefill as prefill_lib
from decoders import state as decode_state
from decoders.simlayerkv import KiviConfig, LazyConfig
from decoders.simlayerkv.memory import Keep, compact, compact_row
from jaxlm.caches.full import FullCache
from jaxlm.caches.layered import LayeredCache, PooledCache, pooled
from jaxlm.config import ModelConfig
from jaxlm.lengths import bucket

POOLED = 'lazy, pooled (the default layout)'
CALLS = 2  # Number of warm-up calls of a program before the timed ones.


def kinds(setting: Setting) -> dict[str, LazyConfig | None]:
  """Returns the LazyConfig of each kind of cache; None: the plain decoder's cache."""
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
  config, all_kinds = setting.decoded, kinds(setting)
  params = random_params(config, config.dtype)
  shapes = {
    (batch, context, name): keep
    for batch in setting.batches
    for context in setting.contexts
    for name, keep in all_kinds.items()
    if name == 'full' or context > setting.kept or setting.tiny
  }
  context = setting.middle_context
  in_pools = {(setting.batches[-1], context, POOLED): all_kinds['lazy']}
  lowered: dict[Any, Any] = {'prefill': lambda: lowered_prefill(setting, params, context)}
  for at, keep in (shapes | in_pools).items():
    lowered[at] = functools.partial(lowered_for, setting, params, functools.partial(abstract_state, setting, at, keep))
    for cut in {i >= keep.n_full for i in range(config.num_layers)} if keep else ():
      lowered['cut', *at, cut] = functools.partial(lowered_cut, setting, at, keep, cut)
  programs = Compiled(lowered)
  programs.wait()
  bandwidth = chip.bandwidth(setting)
  for at, keep in (shapes | in_pools).items():
    labels = dict(zip(('batch', 'context', 'cache'), at))
    make = functools.partial(state_of, setting, at, keep, programs)
    yield Case('decoding', labels, lambda at=at, make=make: ours(programs[at], setting, params, make(), bandwidth))
  yield Case('reading a prompt', {'tokens': context}, lambda: prefill(programs['prefill'], setting, params, context))


def capacity(setting: Setting, context: int) -> int:
  return context + setting.new_tokens * (setting.repeats + CALLS)


def layer(setting: Setting, batch: int, context: int, seed) -> tuple[jax.Array, jax.Array]:
  """Returns random keys and values of one layer."""
  c = setting.decoded
  shape = (batch, c.num_kv_heads, bucket(capacity(setting, context)), c.head_dim)
  return tuple(jax.random.normal(key, shape, c.dtype) for key in jax.random.split(jax.random.key(seed)))


def state_of(setting: Setting, at: tuple, keep: LazyConfig | None, programs: Compiled) -> decode_state.DecodeState:
  """Returns the state of rows that have read `context` tokens, with a cache of this kind."""
  (batch, context, kind), c = at, setting.decoded
  room, lengths = capacity(setting, context) - context, jnp.full(batch, context, jnp.int32)
  make = jax.jit(functools.partial(layer, setting, batch, context))
  if keep is None:
    keys, values = zip(*(make(i) for i in range(c.num_layers)))
    return begun(FullCache(keys, values, (False,) * c.num_layers), batch, context, room)
  cut = lambda i, *more: programs['cut', *at, i >= keep.n_full](*of_layer(i), lengths, None, *more)
  made: dict[int, Any] = {}
  of_layer = lambda i: made.setdefault(i, make(i)) if kind == POOLED else make(i)
  if kind == POOLED:
    cache = pooled(which_pool(c, keep, batch), 2, lambda i, b: cut(i, jnp.int32(b)), lambda i: made.pop(i))
  else:
    cache = LayeredCache(tuple(cut(i) for i in range(c.num_layers)))
  return begun(cache, batch, context, room)


def which_pool(config: ModelConfig, keep: LazyConfig, batch: int) -> np.ndarray:
  """Returns [L, B] int: 1 for lazy layers, which are the last ones, otherwise 0."""
  return np.repeat((np.arange(config.num_layers) >= keep.n_full)[:, None], batch, axis=1).astype(int)


def abstract_state(setting: Setting, at: tuple, keep: LazyConfig | None) -> decode_state.DecodeState:
  """Returns the shapes of `state_of`, without its arrays."""
  (batch, context, kind), c = at, setting.decoded
  room, arrays = capacity(setting, context) - context, abstract_layer(setting, at)
  if keep is None:
    cache = FullCache((arrays[0],) * c.num_layers, (arrays[1],) * c.num_layers, (False,) * c.num_layers)
  elif kind == POOLED:
    in_pool = which_pool(c, keep, batch)
    rows = [int((in_pool == i).sum()) for i in range(2)]
    of_row = [jax.eval_shape(lambda i=i: cut_of(setting, at, keep, bool(i))(*zeros(arrays), 0)) for i in range(2)]
    longer = lambda n: lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype)
    pools = tuple(jax.tree.map(longer(n), row) for n, row in zip(rows, of_row))
    numbers = jax.ShapeDtypeStruct(in_pool.shape, jnp.int32)
    cache = PooledCache(pools, numbers, numbers)
  else:
    kept = {
      cut: jax.eval_shape(lambda cut=cut: cut_of(setting, at, keep, cut)(*zeros(arrays))) for cut in (True, False)
    }
    cache = LayeredCache(tuple(kept[i >= keep.n_full] for i in range(c.num_layers)))
  return jax.eval_shape(lambda: begun(None, batch, context, room)).replace(cache=cache)


def abstract_layer(setting: Setting, at: tuple) -> tuple[Any, Any]:
  return jax.eval_shape(lambda: layer(setting, at[0], at[1], 0))


def zeros(arrays: Any) -> Any:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), arrays)


def cut_of(setting: Setting, at: tuple, keep: LazyConfig, cut: bool) -> Callable:
  """Returns the function that cuts a layer's cache, given (keys, values), or for a single row (keys, values, row)."""
  batch, context, kind = at
  kept, lengths = Keep(keep, capacity(setting, context) - context), jnp.full(batch, context, jnp.int32)
  if kind == POOLED:
    return lambda keys, values, row: compact_row(keys, values, lengths, None, row, keep=kept, cut=cut)
  return lambda keys, values: compact(keys, values, lengths, None, keep=kept, cut=cut)


def lowered_cut(setting: Setting, at: tuple, keep: LazyConfig, cut: bool):
  batch, context, kind = at
  arrays = *abstract_layer(setting, at), jax.ShapeDtypeStruct((batch,), jnp.int32), None
  options = {'keep': Keep(keep, capacity(setting, context) - context), 'cut': cut}
  if kind == POOLED:
    return compact_row.lower(*arrays, jax.ShapeDtypeStruct((), jnp.int32), **options)
  return compact.lower(*arrays, **options)


def begun(cache: Any, batch: int, context: int, room: int) -> decode_state.DecodeState:
  ints = lambda value: jnp.full(batch, value, jnp.int32)
  return decode_state.DecodeState(
    tokens=jnp.zeros((batch, room), jnp.int32), last=ints(1), position=ints(context), lengths=ints(0),
    done=jnp.zeros(batch, bool), finite=jnp.ones(batch, bool), keys=decode_state.row_keys(0, 0, batch), seen=None,
    total=ints(context + room), cache=cache,
  )  # fmt: skip


def lowered_for(setting: Setting, params: Any, state: Callable[[], Any]):
  return decode_state.decode.lower(params, state(), jnp.int32(1), jnp.asarray([-1]), {}, config=setting.decoded)


def ours(program, setting: Setting, params: Any, state: decode_state.DecodeState, bandwidth: float) -> dict[str, Any]:
  held, batch, taken = state.cache.nbytes, len(state.last), []
  jax.block_until_ready(state)
  live = live_bytes()
  steps, none = jnp.int32(setting.new_tokens), jnp.asarray([-1])
  for _ in range(setting.repeats + CALLS):
    start = time.perf_counter()
    state, _ = jax.block_until_ready(program(params, state, steps, none, {}))
    taken.append((time.perf_counter() - start) / setting.new_tokens)
  step = float(np.median(taken[CALLS:]))
  read = sum(x.nbytes for x in jax.tree.leaves(params)) + held
  del state
  freed = {} if live is None else {'device MB': (live - live_bytes()) / 1e6}
  return {
    'ms a step': 1e3 * step, 'tokens/s': batch / step, 'cache MB': held / 1e6, **freed, 'GB/s': read / step / 1e9,
    'of copy': read / step / bandwidth,
  }  # fmt: skip


def prefill_arguments(setting: Setting, params: Any, tokens: int) -> tuple:
  one = lambda x: jnp.full(1, x, jnp.int32)
  prompt = jax.random.randint(jax.random.key(0), (1, tokens), 0, setting.decoded.vocab_size)
  return params, prompt, one(tokens), one(tokens)


def lowered_prefill(setting: Setting, params: Any, tokens: int):
  return prefill_lib.prefill.lower(*prefill_arguments(setting, params, tokens), config=setting.decoded, capacity=tokens)


def prefill(program, setting: Setting, params: Any, tokens: int) -> dict[str, float]:
  c, args = setting.decoded, prefill_arguments(setting, params, tokens)
  taken = seconds(lambda: program(*args), setting.min_seconds, setting.repeats)
  per_token = 2 * (matrix_params(c) - c.vocab_size * c.model_dim) + 2 * c.num_layers * c.num_heads * c.head_dim * tokens
  return {'ms': 1e3 * taken, 'tokens/s': tokens / taken, 'TFLOP/s': tokens * per_token / taken / 1e12}
