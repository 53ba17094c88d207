"""What a beam search is compiled for, as plain data: no JAX here."""

import dataclasses
from typing import Literal

from jaxlm.errors import shown

EarlyStopping = bool | Literal['never']


def check_early_stopping(value: EarlyStopping) -> None:
  """Raises ValueError for a value that is not True, False or 'never'."""
  if not isinstance(value, bool) and value != 'never':
    raise ValueError(f"early_stopping={shown(value)} must be 'never', False or True.")


@dataclasses.dataclass(frozen=True)
class BeamConfig:
  """Settings of a beam search that its program is compiled for."""

  width: int
  """Hypotheses that run side by side, and that are kept, for each source."""
  eos_ids: tuple[int, ...]
  """Ids that end a hypothesis; without any, all hypotheses have the greatest length."""
  forbidden: tuple[int, ...] = ()
  """Ids that are never generated."""
  early_stopping: EarlyStopping = 'never'
  """When the search of a source ends, as in transformers, once `width` hypotheses are kept. 'never': when no running hypothesis
  can still beat the worst of them, which is exact. False: when the best running one would not if it ended now, which for a
  positive length penalty may miss longer hypotheses. True: at once."""
  markov_order: int = 0
  """k above 0: of running hypotheses with the same last k ids only the best goes on, which is exact for a model that predicts
  a token from these ids, the position and the source alone. 0: all go on."""

  def __post_init__(self):
    if self.width < 1:
      raise ValueError(f'{self.width=} must be at least 1.')
    if self.markov_order < 0:
      raise ValueError(f'{self.markov_order=} must be at least 1, or 0 for no recombination.')
    check_early_stopping(self.early_stopping)
