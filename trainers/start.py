"""Loads the parameters of another run with which a run begins (--start)."""

from typing import Any

import jax

from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint, digest
from trainers.distributed import Layout


def parameters(start: str, trainer: str, abstract: Any, layout: Layout) -> Any:
  """Returns the float32 parameters of the run `start`, on this run's devices.

  Args:
    start: run directory.
    trainer: name of the new run's trainer.
    abstract: parameters of the new run as shapes.
    layout: layout of the devices.

  Raises:
    CheckpointError: `start` is a run of another trainer or model; the message names the first parameter that differs, with both
      shapes.
  """
  theirs = checkpoint.run_config(start).get('trainer', 'pretrain')
  if theirs != trainer:
    raise CheckpointError(
      f'--start {start} is a run of {theirs!r}, not of {trainer!r}: its parameters are of another model.'
    )
  params = checkpoint.load_run(start, 'float32', layout.mesh)[1]
  shapes = {digest.name_of(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
  checkpoint.check_fits(shapes, abstract, f'--start {start}')
  return jax.device_put(params, layout.shardings(params))
