"""One decode step's attention over a layer's cache, through the caches: as they attend by themselves, and by `decode_attention`.

A step reads all keys and values once, so its time gives a bandwidth, which is shown as a share of a copy's. A program attends over
several layers, whose caches are larger together than a chip's own memory. The sizes are those of the decoded model.
"""

from collections.abc import Iterator
import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import chip
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, seconds
from jaxlm.attention import cached
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import FullCache, Packed, Slots, slots
from jaxlm.caches.kivi import KiviConfig, dequantize
from jaxlm.caches.packed import pack

BY_THEMSELVES = "the caches' own"
INITIAL = 4  # Tokens that a ring keeps besides the latest ones.
AT_LEAST = 2**29  # Bytes of the layers of a program, unless that would be more than MOST layers.
MOST = 16
LIMITS = {'bfloat16': 1e-2, 'float32': 1e-5}
"""Largest allowed error |x - exact| / |exact|, with norms over all numbers."""


def cases(setting: Setting) -> Iterator[Case]:
  checked = 200 if setting.tiny else 1000
  lowered, shapes = {}, {}
  for layout in LAYOUTS:
    for batch, length in [(2, checked)] + [(b, s) for b in setting.batches for s in setting.contexts]:
      one = jax.eval_shape(functools.partial(memory, setting, layout, batch, length, 0))
      count = 1 if length == checked else max(1, min(2 if setting.tiny else MOST, AT_LEAST // nbytes(one)))
      for name, options in implementations(setting).items():
        at = layout, batch, length, name
        shapes[at] = count
        lowered[at] = functools.partial(lower, setting, (one,) * count, batch, options)
  programs = Compiled(lowered)
  programs.wait()
  for at in shapes:
    if at[2] == checked:
      labels = dict(zip(('layout', 'batch', 'S', 'implementation'), at))
      yield Case('decode attention against float64', labels, lambda at=at: check(programs[at], setting, *at[:3]))
  bandwidth, taken = chip.bandwidth(setting), {}
  for at, count in shapes.items():
    if at[2] != checked:
      labels = dict(zip(('layout', 'batch', 'S', 'implementation'), at)) | {'layers': count}
      run = lambda at=at, count=count: time_of(programs[at], setting, at, count, bandwidth, taken)
      yield Case(f'decode attention, {setting.decoded.dtype}', labels, run)


def nbytes(layer: Any) -> int:
  """Returns the bytes of a layer, which may be abstract."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layer))


def implementations(setting: Setting) -> dict[str, dict[str, Any] | None]:
  """Returns the arguments of `cached.through` by name; None: the caches attend by themselves."""
  found: dict[str, dict[str, Any] | None] = {BY_THEMSELVES: None, 'xla': {'implementation': 'xla'}}
  if jax.default_backend() == 'tpu':
    found['pallas'] = {'implementation': 'pallas'}
  elif jax.default_backend() == 'cpu' and setting.tiny:
    found['pallas'] = {'interpret': True}
  return found


def stored(setting: Setting, batch: int, length: int, seed) -> list[jax.Array]:
  c = setting.decoded
  shape = (batch, c.num_kv_heads, length, c.head_dim)
  return [jax.random.normal(key, shape, c.dtype) for key in jax.random.split(jax.random.key(seed))]


def full(setting: Setting, batch: int, length: int, seed) -> FullCache:
  keys, values = stored(setting, batch, length, seed)
  return FullCache((keys,), (values,), (False,))


def ring(setting: Setting, batch: int, length: int, seed) -> Slots:
  """Returns a ring that has gone round once and a half."""
  lengths = jnp.full(batch, length + length // 2)
  positions = slots.ring_positions(lengths, INITIAL, length - INITIAL)
  kept = length - INITIAL
  return Slots(*stored(setting, batch, length, seed), positions, lengths - length, INITIAL, kept)


def quantised(setting: Setting, batch: int, length: int, seed) -> Packed:
  lengths, config = jnp.full(batch, length), KiviConfig(4, 16, 16) if setting.tiny else KiviConfig()
  return pack(slots.everything_of(*stored(setting, batch, length, seed), lengths), lengths, config)


LAYOUTS = {'full': full, 'ring': ring, '4 bits': quantised}


def memory(setting: Setting, layout: str, batch: int, length: int, seed) -> FullCache | Slots | Packed:
  return LAYOUTS[layout](setting, batch, length, seed)


def attended(setting: Setting, layers: tuple, q) -> jax.Array:
  """Returns the outputs of all layers added, for the queries of each row's last token."""
  rule = AttentionRule('softmax', setting.decoded.query_scale)

  def one(layer):
    if isinstance(layer, FullCache):
      return layer.read(0, q, jnp.full((len(q), 1), layer.keys[0].shape[2] - 1), rule)
    newest = jnp.where(layer.positions < slots.EMPTY, layer.positions, -1).max(axis=-1, keepdims=True)
    return layer.attended(q, newest, rule)

  return sum(map(one, layers))


def queries(setting: Setting, batch: int) -> jax.Array:
  c = setting.decoded
  return jax.random.normal(jax.random.key(7), (batch, 1, c.num_heads, c.head_dim), c.dtype)


def lower(setting: Setting, layers: tuple, batch: int, options: dict[str, Any] | None):
  q = jax.eval_shape(functools.partial(queries, setting, batch))
  with contextlib.nullcontext() if options is None else cached.through(**options):
    return jax.jit(lambda layers, q: attended(setting, layers, q)).lower(layers, q)


def time_of(program, setting: Setting, at: tuple, count: int, bandwidth: float, taken: dict) -> dict[str, Any]:
  layout, batch, length, name = at
  make = jax.jit(functools.partial(memory, setting, layout, batch, length))
  layers, q = tuple(make(i) for i in range(count)), queries(setting, batch)
  taken[at] = seconds(lambda: program(layers, q), setting.min_seconds, setting.repeats) / count
  read = nbytes(layers) / count / taken[at]
  row = {'ms a layer': 1e3 * taken[at], 'GB/s': read / 1e9, 'of copy': read / bandwidth}
  if (whole := ('full', *at[1:])) in taken and layout == '4 bits':
    row['speed, full = 1'] = taken[whole] / taken[at]
  return row


def check(program, setting: Setting, layout: str, batch: int, length: int) -> dict[str, Any]:
  layer, q = memory(setting, layout, batch, length, 0), queries(setting, batch)
  keys, values = (np.asarray(x, np.float64) for x in numbers(layer, layout))
  q_BKGH = np.asarray(q, np.float64).reshape(batch, keys.shape[1], -1, keys.shape[3])
  logits = np.einsum('BKGH,BKSH->BKGS', q_BKGH, keys) * setting.decoded.query_scale
  w = np.exp(logits - logits.max(axis=-1, keepdims=True))
  exact = np.einsum('BKGS,BKSH->BKGH', w / w.sum(axis=-1, keepdims=True), values)
  found = np.asarray(program((layer,), q), np.float64).reshape(exact.shape)
  error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
  return {'off by': error, 'right': error < LIMITS[q.dtype.name]}


def numbers(layer, layout: str) -> tuple[Any, Any]:
  """Returns the keys and values that a step attends over: all that are stored, quantised ones as the numbers they stand for."""
  if layout == 'full':
    return layer.keys[0], layer.values[0]
  if layout == 'ring':
    return layer.keys, layer.values
  n, R = int((layer.positions[0] < slots.EMPTY).sum()), layer.config.residual
  keys, values = (np.array(dequantize(x), np.float64)[:, :, :n] for x in (layer.keys, layer.values))
  keys[:, :, n // R * R :] = np.asarray(layer.key_tail, np.float64)[:, :, : n % R]
  for slot in range(max(0, n - R), n):
    values[:, :, slot] = np.asarray(layer.value_tail, np.float64)[:, :, slot % (R + 1)]
  return keys, values
