"""Speed of the chip's basic operations: a large matrix product, a copy, a matrix times a vector, and an empty call."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import seconds


def cases(setting: Setting) -> Iterator[Case]:
  for dtype, precision in (('bfloat16', 'default'), ('float32', 'default')):
    yield Case(
      'matrix product', {'dtype': dtype, 'precision': precision}, lambda d=dtype, p=precision: matmul(setting, d, p)
    )
  yield Case('memory', {'what': 'copy, read and written'}, lambda: copy(setting))
  yield Case('memory', {'what': 'matrix times vector, bfloat16'}, lambda: matvec(setting))
  yield Case('call', {'what': 'a program that does nothing'}, lambda: nothing(setting))


_reached: dict[str, float] = {}


def peak(setting: Setting) -> float:
  """Returns the FLOP/s of a bfloat16 matrix product, measured once."""
  if 'peak' not in _reached:
    matmul(setting, 'bfloat16', 'default')
  return _reached['peak']


def bandwidth(setting: Setting) -> float:
  """Returns the bytes per second of a copy, measured once."""
  if 'bandwidth' not in _reached:
    copy(setting)
  return _reached['bandwidth']


def matmul(setting: Setting, dtype: str, precision: str) -> dict[str, float]:
  """Times random matrices, because a chip may be faster on zeros than on real data."""
  n = setting.matmul
  a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
  multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
  taken = seconds(lambda: multiply(a, b), setting.min_seconds, setting.repeats)
  if dtype == 'bfloat16':
    _reached['peak'] = 2 * n**3 / taken
  return {'size': n, 'ms': 1e3 * taken, 'TFLOP/s': 2 * n**3 / taken / 1e12}


def copy(setting: Setting) -> dict[str, float]:
  x = jax.random.normal(jax.random.key(0), (setting.copied // 4,))
  add = jax.jit(lambda x: x + 1)
  taken = seconds(lambda: add(x), setting.min_seconds, setting.repeats)
  _reached['bandwidth'] = 2 * x.nbytes / taken
  return {'MB': x.nbytes / 1e6, 'ms': 1e3 * taken, 'GB/s': 2 * x.nbytes / taken / 1e9}


def matvec(setting: Setting) -> dict[str, float]:
  """Returns what decoding at batch 1 is made of."""
  rows = setting.matmul
  matrix = jax.random.normal(jax.random.key(0), (rows, setting.copied // 4 // rows), jnp.bfloat16)
  vector = jnp.ones((1, rows), jnp.bfloat16)
  multiply = jax.jit(jnp.matmul)
  taken = seconds(lambda: multiply(vector, matrix), setting.min_seconds, setting.repeats)
  return {'MB': matrix.nbytes / 1e6, 'ms': 1e3 * taken, 'GB/s': matrix.nbytes / taken / 1e9}


def nothing(setting: Setting) -> dict[str, float]:
  x = jnp.zeros(())
  add = jax.jit(lambda x: x + 1)
  return {'ms': 1e3 * seconds(lambda: add(x), setting.min_seconds, setting.repeats)}
