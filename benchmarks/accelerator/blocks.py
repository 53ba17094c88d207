"""Times block sizes of the attention kernels one by one, to choose the defaults of pallas_kernels.attention_calls."""

from collections.abc import Iterator
import functools
import itertools

import jax
import jax.numpy as jnp

from benchmarks.accelerator.attention import drawn, outputs_and_gradients
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, seconds
from pallas_kernels.attention import _jitted
from pallas_kernels.attention_calls import Spec

GPU = tuple(itertools.product(((64, 32), (64, 64), (128, 32), (128, 64), (128, 128)), (4, 8), (2,)))
TPU = tuple((blocks, 4, 2) for blocks in itertools.product((128, 256, 512, 1024), repeat=2))


def cases(setting: Setting) -> Iterator[Case]:
  tried = TPU if jax.default_backend() == 'tpu' else GPU
  shapes = ((64, 4, 2, 16),) if setting.tiny else ((4096, 32, 8, 64), (4096, 16, 16, 128))
  lowered, arrays = {}, {}
  for T, N, K, H in shapes:
    B = max(1, setting.attention_tokens // T)
    arrays[H] = drawn(T, N, K, H, 'bfloat16', B)
    for operation, (blocks, warps, stages) in itertools.product(
      ('softmax', 'sigmoid'), tried[:1] if setting.tiny else tried
    ):
      spec = Spec(operation, True, None, H**-0.5, 0.0, False, *blocks, warps, stages)
      how = 'interpret' if jax.default_backend() == 'cpu' else 'pallas'
      attend = lambda q, k, v, spec=spec, how=how: _jitted(q, k, v, None, None, spec, how)
      for way, run in (('forward', attend), ('both', outputs_and_gradients(attend))):
        args = arrays[H] if way == 'both' else arrays[H][:3]
        lowered[H, operation, *blocks, warps, stages, way] = functools.partial(lower, run, args)
  programs = Compiled(lowered)
  programs.wait()
  for at in lowered:
    labels = dict(zip(('head', 'operation', 'block_q', 'block_k', 'warps', 'stages', 'way'), at))
    args = arrays[at[0]] if at[-1] == 'both' else arrays[at[0]][:3]
    run = lambda at=at, args=args: {'ms': 1e3 * seconds(lambda: programs[at](*args), setting.min_seconds, 3)}
    yield Case('blocks', labels, run)


def lower(run, args):
  return jax.jit(run).lower(*(jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in args))
