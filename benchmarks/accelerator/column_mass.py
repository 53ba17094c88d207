"""`column_mass` on the chip: its error against float64 on the host, and its time by implementation.

A visible pair of query and key costs two dot products of the head size, one for each pass.
"""

from collections.abc import Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.attention import drawn
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, seconds
from pallas_kernels import column_mass

LIMITS = {'bfloat16': 1e-4, 'float32': 1e-5}
"""Largest allowed error |x - exact| / |exact|, with norms. The exact result is that of the rounded inputs."""
SHAPES = ((8192, 32, 8, 64), (32768, 32, 8, 64))  # (length, query heads, key heads, head size)
SLOPES = np.float32([0.01, 0.03, 0.1, 0.3])
OPERATIONS = ('softmax', 'sigmoid')


def cases(setting: Setting) -> Iterator[Case]:
  length, shapes = (40, ((64, 4, 2, 16),)) if setting.tiny else (700, SHAPES)
  lowered, arrays = {}, {}
  for operation in OPERATIONS:
    for dtype in LIMITS:
      arrays[dtype] = drawn(length, 4, 2, 64, dtype)[:2]
      for name, mass in implementations(setting, operation).items():
        run = functools.partial(mass, window=length // 3, alibi_slopes=SLOPES)
        lowered['check', operation, dtype, name] = functools.partial(jax.jit(run).lower, *arrays[dtype])
    for T, N, K, H in shapes:
      q, k = (jax.ShapeDtypeStruct((1, T, heads, H), jnp.bfloat16) for heads in (N, K))
      for name, mass in implementations(setting, operation).items():
        lowered['time', operation, T, N, K, H, name] = functools.partial(jax.jit(mass).lower, q, k)
  programs = Compiled(lowered)
  programs.wait()
  for at in lowered:
    if at[0] == 'check':
      labels = dict(zip(('operation', 'dtype', 'implementation'), at[1:]))
      run = functools.partial(check, programs, at, arrays[at[2]], length // 3)
      yield Case('column mass against float64', labels, run)
    else:
      labels = dict(zip(('operation', 'T', 'heads', 'key heads', 'head', 'implementation'), at[1:]))
      yield Case('column mass, bfloat16, causal', labels, functools.partial(time_of, programs, at, setting))


def implementations(setting: Setting, operation: str) -> dict[str, Any]:
  """Returns functions (q, k, **options) by name."""
  ours = functools.partial(column_mass, operation=operation)
  found = {'xla': functools.partial(ours, implementation='xla')}
  if jax.default_backend() != 'cpu':
    found['pallas'] = functools.partial(ours, implementation='pallas')
  elif setting.tiny:
    found['pallas'] = functools.partial(ours, interpret=True)
  return found


def check(programs: Compiled, at: tuple, arrays: list[jax.Array], window: int) -> dict[str, Any]:
  _, operation, dtype, _ = at
  exact = in_float64(*(np.asarray(x, np.float64) for x in arrays), operation, window)
  error = lambda x, e: float(np.linalg.norm(np.asarray(x, np.float64) - e) / np.linalg.norm(e))
  errors = dict(zip(('columns', 'proxy', 'rows'), map(error, programs[at](*arrays), exact)))
  return errors | {'right': max(errors.values()) < LIMITS[dtype]}


def in_float64(q, k, operation: str, window: int) -> tuple[np.ndarray, ...]:
  """Returns the sums of whole maps [B, N, T, T]."""
  T, N, H = q.shape[1:]
  logits = np.einsum('BTNH,BSNH->BNTS', q, np.repeat(k, N // k.shape[2], axis=2)) * H**-0.5
  distance = np.arange(T)[:, None] - np.arange(T)
  logits = logits - np.float64(SLOPES)[:, None, None] * distance
  visible = (distance >= 0) & (distance < window)
  weights = np.where(visible, np.exp(np.where(visible, logits, 0)), 0)
  if operation == 'sigmoid':
    weights = np.where(visible, weights / (1 + weights), 0)
  else:
    weights = weights / weights.sum(axis=-1, keepdims=True)
  rows = weights.sum(axis=-1)
  return weights.sum(axis=2), (weights / (rows[..., None] + 1e-8)).sum(axis=2), rows


def time_of(programs: Compiled, at: tuple, setting: Setting) -> dict[str, float]:
  _, _, T, N, K, H, _ = at
  q, k = drawn(T, N, K, H, 'bfloat16')[:2]
  taken = seconds(lambda: programs[at](q, k), setting.min_seconds, setting.repeats)
  return {'ms': 1e3 * taken, 'TFLOP/s': 4 * N * H * T * (T + 1) / 2 / taken / 1e12}
