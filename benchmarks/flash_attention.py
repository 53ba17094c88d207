"""python -m benchmarks.flash_attention: speed of sigmoid and softmax attention in the Pallas kernels, forward and with backward.

On an accelerator it uses bfloat16 and causal attention without bias or ALiBi. Sigmoid's forward pass needs no row maximum and no
sum, and its backward pass needs neither the output nor the log-sum-exp; https://arxiv.org/abs/2409.04431 measures what this saves
in CUDA kernels. On a CPU the kernels are interpreted and their times mean nothing: --interpret with tiny sizes only tests the
command, and writes no file.
"""

import dataclasses

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console

OPERATIONS = ('sigmoid', 'softmax')


@dataclasses.dataclass(frozen=True)
class Config:
  """Sigmoid compared with softmax."""

  lengths: tuple[int, ...] = (2048, 8192, 32768)
  head_dims: tuple[int, ...] = (64, 128)
  tokens: int = 32768
  """Number of tokens in a batch. For each length the batch has as many sequences as fit, at least one."""
  dim: int = 1024
  """heads x head dim."""
  block_q: int | None = None
  block_k: int | None = None
  repeats: int = 10
  interpret: bool = False
  """Interpret the kernels, on a CPU and for tiny sizes: at most 512 tokens and dim 256."""


def main(config: Config) -> None:
  import jax
  import jax.numpy as jnp

  from pallas_kernels import flash_attention

  on_cpu = jax.default_backend() == 'cpu'
  if on_cpu and not config.interpret:
    raise SystemExit('This benchmark times compiled kernels: run it on a TPU or GPU, or try it with --interpret.')
  if config.interpret and max(config.tokens, *config.lengths, 2 * config.dim) > 512:
    raise SystemExit('--interpret is for tiny sizes: --lengths 64 128 --tokens 128 --dim 64 --head-dims 32')

  def runs(operation, q, k, v):
    options = {'operation': operation, 'implementation': 'pallas', 'block_q': config.block_q, 'block_k': config.block_k}
    attend = lambda q, k, v: flash_attention(q, k, v, **options, interpret=config.interpret)

    def both(q, k, v, dout):
      out, vjp = jax.vjp(attend, q, k, v)
      return out, vjp(dout)

    forward, both = jax.jit(attend), jax.jit(both)
    timed = lambda run, *args: lambda: report.seconds(lambda: jax.block_until_ready(run(*args)))
    return {'forward': timed(forward, q, k, v), 'both': timed(both, q, k, v, q)}

  rows = []
  for H in config.head_dims:
    for length in config.lengths:
      shape = (max(1, config.tokens // length), length, config.dim // H, H)
      q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3))
      named = {(o, name): run for o in OPERATIONS for name, run in runs(o, q, k, v).items()}
      ms = {name: 1e3 * float(np.median(times)) for name, times in report.in_turn(named, config.repeats).items()}
      # Both products over the visible half of [T, S].
      flops = 2 * shape[0] * shape[2] * length**2 * H
      row = {'head dim': H, 'length': length, 'batch': shape[0]}
      for name in ('forward', 'both'):
        row |= {f'{name} {o} ms': ms[o, name] for o in OPERATIONS}
        row[f'{name} sigmoid / softmax'] = ms['sigmoid', name] / ms['softmax', name]
      rows.append(row | {'forward sigmoid TFLOP/s': flops / ms['sigmoid', 'forward'] / 1e9})
  if config.interpret:
    print(report.table(rows), 'Interpreted: these times say nothing of the kernels.', sep='\n')
  else:
    report.write('flash_attention', rows, config=dataclasses.asdict(config))


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
