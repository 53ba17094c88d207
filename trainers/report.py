"""Prints a report before a run's first step: its config, its devices, its parameter count and its memory."""

from collections.abc import Callable
import math
from pathlib import Path
from typing import Any

import jax

from jaxlm import config as configs
from trainers.run_directory import flatten


def nbytes_per_device(tree: Any) -> int:
  """Returns the bytes per device of a tree of abstract arrays with shardings."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def gigabytes(n: float) -> str:
  return f'{n / 2**30:.2f} GiB' if n >= 2**30 else f'{n / 2**20:.1f} MiB'


def print_start(
  say: Callable[[str], None], task: Any, config: Any, layout: Any, state: Any, frozen: Any, directory: Path, step: int
) -> None:
  """Prints the config, the devices, the parameter count and a memory estimate. `state` is abstract; `frozen` need not be."""
  flat = flatten(configs.to_dict(config))
  say('\n'.join(f'  {name} = {value}' for name, value in flat.items()))
  devices = list(layout.mesh.devices.flat)
  way = 'pmap' if layout.mapped else 'jit over ' + ' x '.join(f'{k} {n}' for k, n in layout.mesh.shape.items())
  say(f'Devices: {len(devices)} x {devices[0].device_kind} ({way}), {jax.process_count()} process(es)')
  say(f'Parameters: {sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)):,}')
  parts = {
    'parameters': nbytes_per_device(state.params),
    'optimizer': nbytes_per_device(state.opt_state),
    # With accumulation there is also a running sum of the micro-batches' gradients.
    'gradients': nbytes_per_device(state.params) * (2 if config.run.accumulate > 1 else 1),
    'average': nbytes_per_device(state.ema),
    'frozen arrays': nbytes_per_device(frozen),
  }
  rows = max(1, task.batch_size // layout.batch_parts // config.run.accumulate)
  if (activations := task.activation_bytes(rows)) is not None:
    parts['activations and logits'] = activations
  detail = ', '.join(f'{name} {gigabytes(n)}' for name, n in parts.items() if n)
  say(f'Memory per device, about {gigabytes(sum(parts.values()))}: {detail}')
  if data := task.describe():
    say(data)
  say(f'Run directory: {directory}' + (f', resuming at step {step}' if step else ''))
