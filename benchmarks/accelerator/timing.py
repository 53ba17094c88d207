"""Compiles programs in parallel, times them, and reads the memory in use on the device."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import re
import time
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ModelConfig
from jaxlm.models.parameters import kind_of
from jaxlm.models.transformer import abstract_params


class Compiled:
  """Programs by name, compiled in threads. Looking up a program that did not compile raises its error."""

  texts: Path | None = None
  """Folder to which the text of the compiled programs is written (None: it is not written)."""

  def __init__(self, lowered: Mapping[Any, Callable[[], Any]]):
    """lowered: name -> a function that returns the result of `jax.jit(f).lower(...)`."""
    self._pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    self._programs = {name: self._pool.submit(lambda f=f: f().compile()) for name, f in lowered.items()}

  def wait(self) -> None:
    """Waits for all programs, so that no compilation disturbs a measurement."""
    for name, program in self._programs.items():
      if program.exception() is None and self.texts is not None:
        file = re.sub(r'[^\w.]+', '-', str(name)).strip('-') + '.txt'
        (self.texts / file).write_text(program.result().as_text())
    self._pool.shutdown()

  def __getitem__(self, name: Any) -> Any:
    return self._programs[name].result()


def seconds(call: Callable[[], Any], min_seconds: float, repeats: int) -> float:
  """Returns the median seconds of a call over `repeats` runs of at least `min_seconds` each, after two warm-up calls."""
  run = lambda n: stretch(call, n)
  run(1)
  n = max(1, int(np.ceil(min_seconds / max(run(1), 1e-9))))
  return float(np.median([run(n) / n for _ in range(repeats)]))


def stretch(call: Callable[[], Any], n: int) -> float:
  start = time.perf_counter()
  for _ in range(n):
    out = call()
  jax.block_until_ready(out)
  return time.perf_counter() - start


def live_bytes() -> int | None:
  """Returns the bytes in use on the first device, or None if the device does not report them, such as a CPU."""
  return (jax.devices()[0].memory_stats() or {}).get('bytes_in_use')


def random_params(config: ModelConfig, dtype: str) -> Any:
  """Returns random parameters of the model's shapes, made by one small program per shape; `init_params` is one large program."""
  draw = jax.jit(lambda key, shape: (0.02 * jax.random.normal(key, shape)).astype(dtype), static_argnums=1)

  def leaf(path, x):
    if path[-1].key == 'scale':
      return jnp.ones(x.shape, dtype)
    return draw(jax.random.fold_in(jax.random.key(0), zlib.crc32(str(path).encode())), x.shape)

  return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def matrix_params(config: ModelConfig) -> int:
  """Returns the number of parameters in matrix products: all but the norms and an embedding that is only looked up."""
  leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config))
  looked_up = lambda path: not config.tied_embeddings and kind_of([k.key for k in path]) == 'embedding'
  return sum(x.size for path, x in leaves if x.ndim > 1 and not looked_up(path))
