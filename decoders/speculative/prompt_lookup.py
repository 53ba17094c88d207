"""Drafting without a model: what followed the last few tokens where they stood before, in prompt or output.

Prompt lookup decoding, the baseline of every speculative method: free, and good wherever a text repeats itself.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp

from decoders.speculative.rounds import Drafter
from decoders.speculative.trees import Tree, chain_of

if TYPE_CHECKING:
  from jaxtyping import Array, Int


@dataclasses.dataclass(frozen=True)
class PromptLookup(Drafter):
  """A drafter; see `decoders.speculative.rounds.Drafter`."""

  max_draft: int = 10
  """Tokens drafted in a round at most."""
  longest: int = 3
  """Tokens that are looked up; where they never stood before, the last ones of them."""
  shortest: int = 1

  def __post_init__(self):
    if self.max_draft < 1:
      raise ValueError(f'{self.max_draft=} must be at least 1.')
    if not 1 <= self.shortest <= self.longest:
      raise ValueError(f'{self.shortest=} and {self.longest=}: at least 1, and not falling.')

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    return tuple((d, 0) for d in sorted({0, min(4, self.max_draft), self.max_draft}))

  def propose(self, params, draft_params, state, values, rule, config, idle_R=None) -> tuple[Tree, tuple]:
    chain_RD, length_R = found(state.text, state.position, self.longest, self.shortest, self.max_draft)
    return chain_of(chain_RD, length_R), ()


def found(
  text: Int[Array, 'B S'], last: Int[Array, ' B'], longest: int, shortest: int, count: int
) -> tuple[Int[Array, 'B D'], Int[Array, ' B']]:
  """Returns (D = `count` tokens that follow, how many of them were found: all or none).

  Args:
    text: tokens up to position `last`; what comes later is not read.
    longest, shortest: length of the run of last tokens that is looked for. The longest one counts, and of equal ones the
      latest. A text that ends while it is copied goes on from what was copied.
  """
  S = text.shape[1]
  at_1S = jnp.arange(S)[None]
  before_BS = at_1S < last[:, None]
  run_BS, same_BS = jnp.zeros(text.shape, jnp.int32), before_BS
  for back in range(longest):  # run: of the tokens up to here, how many are those up to `last`.
    wanted_B1 = jnp.take_along_axis(text, jnp.maximum(last - back, 0)[:, None], axis=1)
    behind_BS = jnp.pad(text, ((0, 0), (back, 0)))[:, :S]
    same_BS = same_BS & (behind_BS == wanted_B1) & (at_1S >= back)
    run_BS = run_BS + same_BS
  ends_B = jnp.argmax(jnp.where(run_BS >= shortest, run_BS * S + at_1S, -1), axis=1)
  any_B = (run_BS >= shortest).any(axis=1)
  period_B1 = jnp.maximum(last - ends_B, 1)[:, None]
  index_BD = ends_B[:, None] + 1 + jnp.arange(count)[None] % period_B1
  return jnp.take_along_axis(text, jnp.minimum(index_BD, S - 1), axis=1), jnp.where(any_B, count, 0)
