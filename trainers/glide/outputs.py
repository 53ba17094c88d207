"""What the target computes for the rows of a text, kept on disk: the target then runs once for each row, and not in each step.

A folder has one array per name, float16 [rows, ...]: 'keys-L' and 'values-L' [K, S, H] of each layer L that the draft reads, and 'states'
[T, D] after the final norm. Drafts that read other layers of the same rows share the folder. An array that was interrupted is continued.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ModelConfig, computing_fields
from jaxlm.errors import DataError
from jaxlm.io import digest, kept_arrays
from jaxlm.language_model import LanguageModel
from jaxlm.models import glide_training

BATCH = 16
LARGEST = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class TargetOutputs:
  """What a target computes for the rows of a text that are used.

  Attributes:
    arrays: array [rows, ...] of each name.
    numbers: [rows], the number of each row in the text, in increasing order; None: all rows are used.
  """

  arrays: dict[str, np.ndarray]
  numbers: np.ndarray | None = None

  def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns arrays [B, ...] of the rows with these numbers in the text."""
    places = list(indices) if self.numbers is None else np.searchsorted(self.numbers, indices)
    return {name: np.array(x[places]) for name, x in self.arrays.items()}


def make(
  place: str | Path, lm: LanguageModel, tokens: np.ndarray, layers: tuple[int, ...], say: Callable[[str], None]
) -> TargetOutputs:
  """Returns the outputs for the rows `tokens`, int32 [rows, T]; what is not in the folder `place` yet is computed first.

  Args:
    place: folder of the outputs for all targets and texts; each has a folder of its own there.
    lm: the target, with parameters that this process can compute with.
    layers: target layers whose keys and values are kept.
    say: prints a text.

  Raises:
    DataError: the folder cannot be written, or another process is writing it.
  """
  text = hashlib.sha256(tokens.tobytes()).hexdigest(), tokens.shape
  facts = digest.of_tree(lm.params), computing_fields(lm.config), text
  folder = Path(place).expanduser() / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
  compute, count = functools.partial(_outputs, lm.config, lm.params, layers=layers), len(tokens)

  def pieces(names, done):
    for first in range(done * BATCH, count, BATCH):
      # The last batch repeats rows: one program for all.
      rows, n = np.resize(tokens[first : first + BATCH], (BATCH, tokens.shape[1])), min(BATCH, count - first)
      found = jax.device_get(compute(rows))
      yield slice(first, first + n), {name: found[name][:n] for name in names}
      if (first // BATCH + 1) % 16 == 0 or first + n == count:
        say(f'outputs of the target: {first + n:,} of {count:,} rows')

  try:
    shapes = jax.eval_shape(compute, jax.ShapeDtypeStruct(tokens.shape, tokens.dtype))
    return TargetOutputs(kept_arrays.kept(folder, shapes, pieces))
  except DataError as e:
    raise DataError(f'--keep-outputs: {e}') from e


@functools.partial(jax.jit, static_argnames=('config', 'layers'))
def _outputs(
  config: ModelConfig, params: Any, tokens_BT: jax.Array, *, layers: tuple[int, ...]
) -> dict[str, jax.Array]:
  reads, states_BTD = glide_training.target_reads(config, params, tokens_BT, layers)
  found = {'states': states_BTD}
  for i in layers:
    found |= {f'keys-{i}': reads.layers[i].keys, f'values-{i}': reads.layers[i].values}
  return {name: jnp.clip(x.astype(jnp.float32), -LARGEST, LARGEST).astype(jnp.float16) for name, x in found.items()}
