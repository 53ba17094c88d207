"""The position of a run in its training text: what checkpoints note of it, and how a run resumes with other batches from there."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxlm.data import packing
from jaxlm.errors import CheckpointError


def describe(batches: packing.Batches, held_out: Mapping[str, packing.EvalBatches]) -> dict[str, dict[str, Any]]:
  """Returns the number of tokens and a digest of the training text and of the held-out text."""
  corpora = {'training': batches.corpus, 'held-out': next(iter(held_out.values())).corpus}
  return {name: {'tokens': len(corpus), 'digest': corpus.digest} for name, corpus in corpora.items()}


def changes(notes: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns a sentence for each text that differs from the one in the notes."""
  found = []
  for name, text in now.items():
    texts = notes.get('texts')
    before = texts.get(name) if isinstance(texts, dict) else None
    if isinstance(before, dict) and before != text:
      found.append(
        f'The {name} text has changed since this run was saved: it had {before.get("tokens")} tokens and has '
        f'{text["tokens"]} now, with another digest. The run continues at the same position.'
      )
  return found


def changed_batches(before: Mapping[str, Any], data: Any, step: int) -> list[str]:
  """Returns a sentence if the batches of a resumed run are not those of before, or nothing.

  Args:
    before: the settings of the data up to the checkpoint of `step`.
    data: the settings now, with `batch_size` and `seed`.
  """
  changed = [name for name in ('batch_size', 'seed') if before.get(name, getattr(data, name)) != getattr(data, name)]
  if not changed:
    return []
  return [
    f'The batches differ from before ({", ".join(changed)}): the run continues with batch {step} of the new ones.'
  ]


def resumed(
  batches: packing.Batches, step: int, notes: Mapping[str, Any], before: Mapping[str, Any]
) -> packing.Batches:
  """Returns batches that continue at `step` after the rows already read; if the row length has changed, after the tokens read.

  Args:
    notes: notes of the checkpoint with 'rows' and their 'length'; in older checkpoints, without them, `before` gives both.
    before: the config of the run up to the checkpoint.

  Raises:
    CheckpointError: the notes are not numbers.
  """
  data = before.get('data', {})
  length = notes.get('length', data.get('length', batches.length))
  rows = notes.get('rows', step * data.get('batch_size', batches.batch_size))
  if type(rows) is not int or rows < 0 or type(length) is not int or length < 1:
    raise CheckpointError(
      f'The notes of the checkpoint of step {step} have {rows=} and {length=}: expected whole numbers.'
    )
  # Rounded up, so that a row of which a part was read is skipped.
  rows = -(-rows * length // batches.length)
  return batches if rows == batches.rows_before(step) else dataclasses.replace(batches, start=(step, rows))
