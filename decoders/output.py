"""The result of every decoder."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Output:
  """Generated tokens and statistics. There are R = prompts x samples rows; the samples of a prompt are neighbours."""

  tokens: np.ndarray
  """[R, max_new_tokens] int32 in the order of generation, padded after the end of each row."""
  lengths: np.ndarray
  """[R] int32: number of tokens generated, EOS included."""
  text: list[str] | None
  """One string per row, in reading order, without special tokens and without the stop string (None: no tokenizer)."""
  stats: dict[str, Any]
  """prefill_seconds, decode_seconds, compile_seconds, tokens_per_second (decode), kv_bytes, prompt_tokens, new_tokens,
  target_calls. With simlayerkv also: lazy_layers, lazy_ratios (per row), kv_bytes_full, compression. With drafting also: rounds
  (summed over rows), drafted, accepted, verified (nodes), tokens_per_round (M), acceptance (alpha). With swift also: skipped,
  skip_ratio, draft_cost (bytes of a draft step over those of a full one), matchness, predicted_speedup, search_seconds,
  searched_sets, search_ended. With swift and glide also: plain_steps, seconds_per_token (of each mode of decoding: see
  decoders.speculative.modes). With glide also: drafted_at, accepted_at and acceptance_by_position, lists with a number for each place
  in a chain."""

  def __repr__(self) -> str:
    first = '' if self.text is None else f'; first text {self.text[0][:60]!r}{"..." if len(self.text[0]) > 60 else ""}'
    speed = f', {self.stats["tokens_per_second"]:.1f} tokens/s' if self.stats.get('tokens_per_second') else ''
    return f'Output({len(self.lengths)} rows, {int(self.lengths.sum())} tokens{speed}{first})'

  def rows(self) -> list[list[int]]:
    """Returns the generated ids of each row without padding."""
    return [row[:n].tolist() for row, n in zip(self.tokens, self.lengths)]
