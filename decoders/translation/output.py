"""What translating returns."""

import dataclasses
from typing import Any

import numpy as np

from decoders.output import Output


@dataclasses.dataclass(frozen=True)
class Translations(Output):
  """Translations and what happened. R rows: sources x num_return, those of a source side by side, the best first."""

  scores: np.ndarray
  """[R] float32: sum of the log-probabilities of the row's tokens / length ** length_penalty. -inf, with length 0, where a source
  has fewer hypotheses than were asked for."""
  stats: dict[str, Any]
  """encode_seconds, decode_seconds, compile_seconds, source_tokens, new_tokens (of the best translations), tokens_per_second
  (new_tokens / decode_seconds), steps (calls of the decoder), state_bytes (of the decoder's own cache, the largest batch),
  memory_bytes (of what it reads of the sources, the largest batch), recombined (candidates dropped by recombination)."""

  def __repr__(self) -> str:
    first = '' if self.text is None else f'; first text {self.text[0][:60]!r}{"..." if len(self.text[0]) > 60 else ""}'
    speed = f', {self.stats["tokens_per_second"]:.1f} tokens/s' if self.stats.get('tokens_per_second') else ''
    return f'Translations({len(self.lengths)} rows, {int(self.lengths.sum())} tokens{speed}{first})'
