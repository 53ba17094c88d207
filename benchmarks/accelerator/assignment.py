"""`linear_assignment` on the chip, by implementation: its time, and its total costs beside those of the CPU."""

from collections.abc import Iterator
import functools
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, seconds
from pallas_kernels import linear_assignment


def cases(setting: Setting) -> Iterator[Case]:
  sizes = {(B, T): costs(B, T) for B, T in setting.assignments}
  lowered = {
    (B, T, name): lambda solve=solve, cost=cost: jax.jit(solve).lower(cost)
    for (B, T), cost in sizes.items()
    for name, solve in implementations(setting).items()
  }
  programs = Compiled(lowered)
  programs.wait()
  for B, T, name in lowered:
    labels = {'problems': B, 'T': T, 'implementation': name}
    run = lambda at=(B, T, name): solved(programs[at], sizes[at[:2]], setting)
    yield Case('assignment, float32', labels, run)


def implementations(setting: Setting) -> dict[str, Any]:
  found = {'xla': functools.partial(linear_assignment, implementation='xla')}
  if jax.default_backend() == 'tpu':
    found['pallas'] = functools.partial(linear_assignment, implementation='pallas')
  elif jax.default_backend() == 'cpu' and setting.tiny:
    found['pallas'] = functools.partial(linear_assignment, interpret=True)
  return found


def costs(B: int, T: int) -> np.ndarray:
  """Returns random whole numbers, whose sums are exact."""
  return np.random.default_rng(T).integers(0, 1000, (B, T, T)).astype(np.float32)


def total(cost_BTT: np.ndarray, columns_BT) -> np.ndarray:
  return np.take_along_axis(cost_BTT, np.asarray(columns_BT)[..., None], axis=2).sum(axis=(1, 2))


def solved(program, cost_BTT: np.ndarray, setting: Setting) -> dict[str, Any]:
  cost = jax.device_put(cost_BTT)
  with jax.default_device(jax.devices('cpu')[0]):
    least_B = total(cost_BTT, linear_assignment(cost_BTT))
  right = bool((total(cost_BTT, program(cost)) == least_B).all())
  taken = seconds(lambda: program(cost), setting.min_seconds, setting.repeats)
  return {'ms': 1e3 * taken, 'problems/s': len(cost_BTT) / taken, 'right': right}
