"""Where a run is in its text: what its checkpoints note, and how another batch size or row length goes on from there."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jaxlm.data import packing
from jaxlm.errors import CheckpointError


def describe(batches: packing.Batches, held_out: Mapping[str, packing.EvalBatches]) -> dict[str, dict[str, Any]]:
  """Returns the size and a digest of the training text and of the held-out text, as tokens."""
  corpora = {'training': batches.corpus, 'held-out': next(iter(held_out.values())).corpus}
  return {name: {'tokens': len(corpus), 'digest': corpus.digest} for name, corpus in corpora.items()}


def changes(notes: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns a sentence for each text that is not the one of the notes."""
  found = []
  for name, text in now.items():
    texts = notes.get('texts')
    before = texts.get(name) if isinstance(texts, dict) else None
    if isinstance(before, dict) and before != text:
      found.append(
        f'The {name} text has changed since this run was saved: it had {before.get("tokens")} tokens and has '
        f'{text["tokens"]} now, with another digest. The run goes on as far into it as it was.'
      )
  return found


def resumed(
  batches: packing.Batches, step: int, notes: Mapping[str, Any], before: Mapping[str, Any]
) -> packing.Batches:
  """Returns batches that go on at `step` behind the rows, or for rows of another length the tokens, that were read.

  Args:
    notes: of the checkpoint: 'rows' and their 'length'. Older ones have none; then `before` tells.
    before: the config of the run up to the checkpoint.

  Raises:
    CheckpointError: notes that are not numbers.
  """
  data = before.get('data', {})
  length = notes.get('length', data.get('length', batches.length))
  rows = notes.get('rows', step * data.get('batch_size', batches.batch_size))
  if type(rows) is not int or rows < 0 or type(length) is not int or length < 1:
    raise CheckpointError(f'The notes of the checkpoint of step {step} say {rows=} and {length=}: not numbers of rows.')
  # Rounded up: a row of which a part was read is left out rather than read again.
  rows = -(-rows * length // batches.length)
  return batches if rows == batches.rows_before(step) else dataclasses.replace(batches, start=(step, rows))
