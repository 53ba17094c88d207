"""Loads the parameters of another run with which a run begins (--start)."""

import hashlib
from pathlib import Path
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


def other_tokenizer(start: str, directory: Path) -> str | None:
  """Returns a sentence for the user if the folder `tokenizer` of a run has other files than that of the run `start`, else None.

  Parameters of equal shapes may belong to other tokens or labels, and a loss that starts high is then the only sign of it.
  """
  theirs, ours = (_files(Path(run) / 'tokenizer') for run in (start, directory))
  if not (theirs and ours) or theirs == ours:
    return None
  names = ', '.join(sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)))
  return (
    f'The tokenizer of this run may not be that of --start {start}: {names} in their folders tokenizer/ differ. Then the same number '
    'stands for another token or label.'
  )


def _files(folder: Path) -> dict[str, str]:
  """Returns the digest of each file in a folder by its name."""
  files = [file for file in folder.rglob('*') if file.is_file()]
  return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
