"""Compiled programs, kept by argument shapes, so that the time to compile and the time to run are measured apart."""

import time
from typing import Any

import jax

from jaxlm.attention import flash
from jaxlm.models import sharding

# Each program holds memory maps, hundreds for a deep model, and Linux allows a process 65530 of them. Without this limit,
# prompts of many lengths would end the process.
MOST = 48
# On a CPU, decoding waits for memory, and a core with AVX-512 reads a matrix faster in whole registers; XLA's own choice is half
# of one. Processors without AVX-512 are not affected.
CPU_OPTIONS = {'xla_cpu_prefer_vector_width': 512}
_programs: dict[Any, Any] = {}  # in the order of last use


class Clock:
  """Seconds spent compiling, and seconds spent running each named part."""

  def __init__(self):
    self.compile_seconds = 0.0
    self.seconds: dict[str, float] = {}

  def run(self, part: str, function, *args, **static):
    """Calls the jitted `function`, compiled for these shapes at most once, and waits for its result."""
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((x.shape, x.dtype, x.sharding) for x in leaves)
    widest = jax.dtypes.canonicalize_dtype('float64')  # float32, unless jax_enable_x64 is set: then programs differ.
    key = (function, structure, shapes, tuple(sorted(static.items())), widest)
    program = _programs.pop(key, None)
    if program is None:
      start = time.perf_counter()
      options = CPU_OPTIONS if jax.default_backend() == 'cpu' else None
      with flash.on_mesh(sharding.mesh_of(leaves)):
        program = function.lower(*args, **static).compile(compiler_options=options)
      self.compile_seconds += time.perf_counter() - start
    _programs[key] = program
    while len(_programs) > MOST:
      _drop(next(iter(_programs)))
    start = time.perf_counter()
    out = jax.block_until_ready(program(*args))
    self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
    return out


def forget() -> None:
  """Frees all compiled programs and their memory."""
  for key in [*_programs]:
    _drop(key)


def _drop(key) -> None:
  del _programs[key]
  # JAX keeps what `lower` and `compile` made for as long as the function lives. Programs that are still in _programs stay compiled.
  key[0].clear_cache()
