"""Prompt lookup: drafts the tokens that followed the last few tokens where these occurred before, in prompt or output.

It is the baseline of every speculative method: it needs no model, and works well if a text repeats itself.
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
  """Drafts by prompt lookup; see `decoders.speculative.rounds.Drafter`."""

  max_draft: int = 10
  """Largest number of tokens drafted in a round."""
  longest: int = 3
  """Largest number of last tokens that are looked up. If they do not occur earlier, fewer of them are looked up."""
  shortest: int = 1
  """Smallest number of last tokens that are looked up."""

  def __post_init__(self):
    if self.max_draft < 1:
      raise ValueError(f'{self.max_draft=} must be at least 1.')
    if not 1 <= self.shortest <= self.longest:
      raise ValueError(f'{self.shortest=} and {self.longest=}: expected 1 <= shortest <= longest.')

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    return tuple((d, 0) for d in sorted({0, min(4, self.max_draft), self.max_draft}))

  def propose(self, params, draft_params, state, values, rule, config, idle_R=None) -> tuple[Tree, tuple]:
    chain_RD, length_R = found(state.text, state.position, self.longest, self.shortest, self.max_draft)
    return chain_of(chain_RD, length_R), ()


def found(
  text: Int[Array, 'B S'], last: Int[Array, ' B'], longest: int, shortest: int, count: int
) -> tuple[Int[Array, 'B D'], Int[Array, ' B']]:
  """Returns (the D = `count` tokens that follow the match, how many of them were found: D or 0).

  Args:
    text: tokens up to position `last`; later ones are not read.
    longest, shortest: bounds on the length of the match. The longest match counts, and of equally long matches the latest. If
      copying reaches the end of the text, it continues with the copied tokens.
  """
  S = text.shape[1]
  at_1S = jnp.arange(S)[None]
  before_BS = at_1S < last[:, None]
  run_BS, same_BS = jnp.zeros(text.shape, jnp.int32), before_BS
  for back in range(longest):  # run_BS: how many tokens up to each position are the same as those up to `last`.
    wanted_B1 = jnp.take_along_axis(text, jnp.maximum(last - back, 0)[:, None], axis=1)
    behind_BS = jnp.pad(text, ((0, 0), (back, 0)))[:, :S]
    same_BS = same_BS & (behind_BS == wanted_B1) & (at_1S >= back)
    run_BS = run_BS + same_BS
  ends_B = jnp.argmax(jnp.where(run_BS >= shortest, run_BS * S + at_1S, -1), axis=1)
  any_B = (run_BS >= shortest).any(axis=1)
  period_B1 = jnp.maximum(last - ends_B, 1)[:, None]
  index_BD = ends_B[:, None] + 1 + jnp.arange(count)[None] % period_B1
  return jnp.take_along_axis(text, jnp.minimum(index_BD, S - 1), axis=1), jnp.where(any_B, count, 0)
