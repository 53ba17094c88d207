"""The two strategies of `decoders.generate`: a memory reads prompts and may compress their cache, and a loop extends the rows.

Other decoders replace one of them. A strategy keeps its own settings and serves many calls of `generate`; what a call decides is
passed to it as a `Plan`.
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
  """Settings that a call of `generate` passes to its strategies for one batch."""

  chunk: int | None = None
  """Number of a prompt's tokens that are read at once (None: all)."""
  slack: int = 0
  """Number of cache slots that the loop needs beyond a row's last token."""
  slots: int = 0
  """Number of cache slots of each row."""


class WholeMemory:
  """Memory strategy of plain decoding: it reads the prompts and keeps their whole cache. Other memories are subclasses."""

  wrap: Callable[[FullCache, jax.Array], Any] | None = None
  """Static function (empty cache, [B] lengths) -> the cache that reads the prompts."""
  room: int | None = None
  """Number of tokens that the cache must have room for beyond the prompt (None: max_new_tokens)."""

  def growth(self, max_new_tokens: int, plan: Plan) -> int:
    """Returns the number of slots that the cache needs beyond the prompt."""
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
    """Returns (row numbers, their state) for each group of rows that is decoded together. Every row is in one group.

    `advance(state, steps, rows)` returns the state after `steps` steps. The arrays of `state` may be deleted.
    """
    return [(np.arange(len(state.lengths)), state)]

  def finished(self, rows_R: np.ndarray, state: DecodeState) -> None:
    """Called when all rows of a group are done. The cache then holds all tokens of each row except the last one."""

  def stats(self) -> dict[str, Any]:
    return {}


class PlainLoop:
  """Loop strategy of plain decoding: it extends rows by one token per step. Other loops are subclasses."""

  slack = 0
  """Number of cache slots that a row needs beyond its last token."""

  def check(self, lm: LanguageModel, longest: int, values: dict) -> None:
    """Raises ValueError if the loop cannot decode rows of `longest` tokens with these sampling settings."""

  def clear(self) -> None:
    """Resets the statistics. Called at the start of each call of `generate`."""

  def begin(
    self, clock: Clock, lm: LanguageModel, prompts: Sequence[Sequence[int]], state: DecodeState, plan: Plan
  ) -> Any:
    """Returns the state for `advance`, of rows with these prompts."""
    return state

  def advance(self, clock: Clock, lm: LanguageModel, state: Any, steps: int, eos_E, values) -> tuple[Any, jax.Array]:
    """Returns (the state after at most `steps` calls of the model, the number of calls made)."""
    return clock.run('decode', decode, lm.params, state, jnp.int32(steps), eos_E, values, config=lm.config)

  def finished(self, rows_R: np.ndarray, state: Any) -> None:
    """Called when all rows of a group are done."""

  def stats(self) -> dict[str, Any]:
    return {}
