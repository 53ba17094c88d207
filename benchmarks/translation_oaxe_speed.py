"""Speed of decoding in one pass, compared with a teacher of the same shape that writes token by token greedily, on the same sources."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.translation_mat_scores import verdict
from benchmarks.translation_oaxe_scores import FASTER
import decoders
from jaxlm.translation_model import Seq2SeqModel


def rows(
  student: Seq2SeqModel,
  teacher: Seq2SeqModel,
  sources: Sequence[Any],
  batches: Sequence[int],
  length_beams: Sequence[int],
  repeats: int,
  options: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> list[dict[str, Any]]:
  """Returns a row for each decoder and batch: seconds of encoding and decoding all sources, in turn, without compiling.

  options: further options of decoding for (student, teacher).
  """
  found = []
  for batch in batches:
    # As many sources as fill whole batches.
    some = sources[: max(batch, len(sources) // 4 if batch == 1 else len(sources) // batch * batch)]

    def run(model, settings, some=some, batch=batch):
      return lambda: decoders.translate(model, some, batch_size=batch, **settings).stats

    runs = {'teacher, greedy': run(teacher, {'beam_size': 1} | options[1])}
    runs |= {f'one pass, length beam {n}': run(student, {'length_beam': n} | options[0]) for n in length_beams}
    timed = report.in_turn(runs, repeats)
    seconds = {name: [s['encode_seconds'] + s['decode_seconds'] for s in stats] for name, stats in timed.items()}
    for name, times in seconds.items():
      ratios = [a / b for a, b in zip(seconds['teacher, greedy'], times)]
      found.append({
        'batch': batch, 'decoder': name, 'ms a sentence': 1000 * float(np.median(times)) / len(some),
        'tokens a sentence': timed[name][0]['new_tokens'] / len(some), 'speed, teacher = 1': float(np.median(ratios)),
        'lowest': min(ratios), 'highest': max(ratios),
      })  # fmt: skip
  return found


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns whether one pass is as much faster as it should be with a batch of 1."""
  return [
    verdict(
      f'{row["decoder"]}: at least {FASTER} times as fast as the greedy teacher with a batch of 1',
      row['speed, teacher = 1'] >= FASTER,
      f'{row["speed, teacher = 1"]:.1f} times',
    )
    for row in rows
    if row['batch'] == 1 and row['decoder'] != 'teacher, greedy'
  ]
