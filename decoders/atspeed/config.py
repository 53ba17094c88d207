"""Settings of speculative beam search, as plain data: no JAX here."""

import dataclasses
from typing import Literal

from jaxlm.errors import unknown

Verify = Literal['strict', 'relaxed', 'relaxed_exact']
Order = Literal['score', 'nested']
Select = Literal['uniform', 'score']


@dataclasses.dataclass(frozen=True)
class AtSpeedConfig:
  """What a speculative beam search is compiled for."""

  k: int = 10
  """Number of identifiers to return, and of beams of the target."""
  beam: int = 40
  """Number of prefixes that the draft keeps at each step (N). More are accepted more often, and cost the target more to read. On a
  CPU, where every token takes time, 2 k are often faster than the paper's 40."""
  gamma: int = 3
  """Largest number of steps that the draft runs ahead in a round."""
  verify: Verify = 'strict'
  """strict: exactly the target's own beam search. relaxed: the paper's rule; drafted prefixes are accepted with probability min(1, p/q), so
  that fewer calls of the target are needed, and the result is no longer that of the target. relaxed_exact: exactly the law of
  stochastic beam search with the target."""
  order: Order = 'score'
  """Which prefixes the draft keeps with verify='strict'. score: its best ones. nested: first those of its own search with k beams,
  then its best others; a draft equal to the target is then always accepted."""
  select: Select = 'uniform'
  """Which k prefixes are kept with verify='relaxed' if more are accepted. uniform: a random choice. score: those
  with the best scores. Without a draft nothing is accepted, and it has no effect."""

  def __post_init__(self):
    if self.k < 1:
      raise ValueError(f'{self.k=} must be at least 1.')
    if self.beam < self.k:
      raise ValueError(
        f'beam={self.beam} must be at least k={self.k}: the draft proposes the prefixes that the target keeps.'
      )
    if self.gamma < 1:
      raise ValueError(f'{self.gamma=} must be at least 1. Without a draft (draft=None), nothing is drafted.')
    for name, options in (('verify', Verify), ('order', Order), ('select', Select)):
      if getattr(self, name) not in options.__args__:
        raise unknown(name, getattr(self, name), options.__args__)
    if self.order != 'score' and self.drawn:
      raise ValueError(
        f"order={self.order!r} is for verify='strict'; verify={self.verify!r} draws its drafts at random."
      )
    if self.select != 'uniform' and self.verify != 'relaxed':
      raise ValueError(f"select={self.select!r} is for verify='relaxed', not verify={self.verify!r}.")

  @property
  def drawn(self) -> bool:
    """Whether prefixes are drawn at random."""
    return self.verify != 'strict'
