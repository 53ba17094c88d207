"""What decoders may do differently within `decoders.generate`: what becomes of the cache of a prompt, and how rows go on.

A strategy has settings of its own; what a call of `generate` decides comes in one `Plan`. So a strategy serves many calls.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders.prefill import prefill, prefill_in_chunks
from decoders.programs import Clock
from decoders.prompts import PaddedPrompts
from decoders.state import DecodeState, decode
from jaxlm.caches import FullCache
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a call of `generate` decides for its strategies, of one batch."""

  chunk: int | None = None
  """Tokens of a prompt that are read at once; None: all."""
  slack: int = 0
  """Slots that the loop needs beyond a row's last token."""
  slots: int = 0
  """Slots that each row of the cache has."""


class WholeMemory:
  """How prompts are read and what becomes of their cache: all is kept. Other decoders pass another one of these."""

  wrap: Callable[[FullCache, jax.Array], Any] | None = None
  """Static function of (empty cache, [B] lengths) that makes the cache which reads the prompts."""
  room: int | None = None
  """Tokens that the cache must be able to grow by; None: those to be generated."""

  def growth(self, max_new_tokens: int, plan: Plan) -> int:
    """Returns the tokens that the cache is made to grow by."""
    return max(self.room or 0, max_new_tokens) + plan.slack

  def read(self, clock: Clock, lm: LanguageModel, padded: PaddedPrompts, total_B, plan: Plan):
    """Returns (float32 logits [B, V] after each row's last token, cache)."""
    if plan.chunk is not None and plan.chunk < padded.tokens.shape[1]:
      return prefill_in_chunks(clock, lm, padded, total_B, plan.slots, plan.chunk, self.wrap)
    args = lm.params, jnp.asarray(padded.tokens), jnp.asarray(padded.lengths), total_B
    return clock.run('prefill', prefill, *args, config=lm.config, capacity=plan.slots, wrap=self.wrap)

  def compress(
    self, state: DecodeState, advance: Callable, config: ModelConfig, plan: Plan
  ) -> list[tuple[np.ndarray, DecodeState]]:
    """Returns (rows, their state) of each part of the batch that is decoded together, between them every row.

    `advance(state, steps, rows)` takes steps. The state is given away: its arrays may be deleted.
    """
    return [(np.arange(len(state.lengths)), state)]

  def finished(self, rows_R: np.ndarray, state: DecodeState) -> None:
    """Is told of each part that is done. All tokens but the last one of each row are in its cache."""

  def stats(self) -> dict[str, Any]:
    return {}


class PlainLoop:
  """How rows that have been read go on: a token a step. Other decoders pass another one of these."""

  slack = 0
  """Slots that a row needs beyond its last token."""

  def check(self, lm: LanguageModel, longest: int, values: dict) -> None:
    """Raises ValueError if rows of so many tokens cannot be decoded so, with such options of sampling."""

  def clear(self) -> None:
    """Forgets what `stats` would tell: a call of `generate` begins."""

  def begin(
    self, clock: Clock, lm: LanguageModel, prompts: Sequence[Sequence[int]], state: DecodeState, plan: Plan
  ) -> Any:
    """Returns the state that `advance` takes, of rows with these prompts."""
    return state

  def advance(self, clock: Clock, lm: LanguageModel, state: Any, steps: int, eos_E, values) -> tuple[Any, jax.Array]:
    """Returns (the state after at most so many calls of the model, calls made)."""
    return clock.run('decode', decode, lm.params, state, jnp.int32(steps), eos_E, values, config=lm.config)

  def finished(self, rows_R: np.ndarray, state: Any) -> None:
    """Is told of each part of a batch that is done."""

  def stats(self) -> dict[str, Any]:
    return {}
