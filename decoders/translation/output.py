"""What translating returns."""

import dataclasses
from typing import Any

import numpy as np

from decoders.output import Output
from jaxlm.errors import NotFiniteError
from jaxlm.translation_model import Seq2SeqModel


@dataclasses.dataclass(frozen=True)
class Translations(Output):
  """Translations and what happened. R rows: sources x num_return, those of a source side by side, the best first."""

  scores: np.ndarray
  """[R] float32: sum of the log-probabilities of the row's tokens / length ** length_penalty; of models that predict all tokens at
  once, the mean log-probability of the predicted positions. -inf, with length 0, where a source has fewer hypotheses than were asked
  for."""
  stats: dict[str, Any]
  """encode_seconds, decode_seconds, compile_seconds, source_tokens, new_tokens (of the best translations), tokens_per_second
  (new_tokens / decode_seconds), steps (calls of the decoder), state_bytes (of the decoder's own cache, the largest batch),
  memory_bytes (of what it reads of the sources, the largest batch), recombined (candidates dropped by recombination). Of models that
  predict all tokens at once also: tokens_before_dedup and repeated_tokens (tokens of the best translations before runs of equal tokens
  become one, and those of them that are equal to the token before them), repetition_ratio (the second over the first)."""

  def __repr__(self) -> str:
    first = '' if self.text is None else f'; first text {self.text[0][:60]!r}{"..." if len(self.text[0]) > 60 else ""}'
    speed = f', {self.stats["tokens_per_second"]:.1f} tokens/s' if self.stats.get('tokens_per_second') else ''
    return f'Translations({len(self.lengths)} rows, {int(self.lengths.sum())} tokens{speed}{first})'


def texts(model: Seq2SeqModel, tokens: np.ndarray, lengths: np.ndarray) -> list[str] | None:
  """Returns the text of each row of tokens, None if the model has no tokenizer. An EOS at the end of a row is left out."""
  if model.tokenizer is None:
    return None
  without_eos = lambda row: row[:-1] if row[-1:] == [model.config.eos_id] else row
  return [model.tokenizer.decode_target(without_eos(row[:n].tolist())) for row, n in zip(tokens, lengths)]


def check_finite(model: Seq2SeqModel, rows: np.ndarray, finite: np.ndarray) -> None:
  """Raises NotFiniteError if a token of a source was to be chosen from logits that are not numbers."""
  if not finite.all():
    raise NotFiniteError(
      f'Source {rows[int(np.argmin(finite))]}: the logits of its translation are not finite. The model computes in '
      f'{model.config.dtype}: check that its weights are finite and were read in the right format, or load it in float32.'
    )
