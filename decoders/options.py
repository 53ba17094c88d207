"""Sampling options as plain data. This file does not import JAX, so that a command shows its help at once."""

import dataclasses

SMALLEST = 2.0**-126
"""The smallest normal float32. Some devices replace smaller numbers by 0."""
SMALLEST_PENALTY = 1e-30


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is chosen; greedy by default."""

  temperature: float = 0.0
  """0: take the most likely token (greedy). 1: sample from the model's distribution. Higher: more varied text."""
  top_k: int = 0
  """Sample only from the k most likely tokens, and from those as likely as the last of them (0: all tokens)."""
  top_p: float = 1.0
  """Sample only from the most likely tokens whose probabilities together reach this value (1: all tokens)."""
  min_p: float = 0.0
  """Sample only from tokens at least min_p times as likely as the most likely one (0: all tokens)."""
  repetition_penalty: float = 1.0
  """Above 1: tokens that are in the prompt or in the output so far become less likely (https://arxiv.org/abs/1909.05858)."""

  def __post_init__(self):
    if not self.temperature >= 0:
      raise ValueError(f'{self.temperature=} must be 0 (greedy) or more.')
    if self.top_k < 0:
      raise ValueError(f'{self.top_k=} must be 0 (all tokens) or more.')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'{self.top_p=} must be in (0, 1].')
    if not 0 <= self.min_p <= 1:
      raise ValueError(f'{self.min_p=} must be in [0, 1].')
    if not SMALLEST_PENALTY <= self.repetition_penalty <= 1 / SMALLEST_PENALTY:
      raise ValueError(
        f'{self.repetition_penalty=} must be within {SMALLEST_PENALTY:g} .. {1 / SMALLEST_PENALTY:g}: beyond, logits overflow.'
      )

  @property
  def active(self) -> dict[str, float]:
    """The settings that have an effect. A program is compiled for each set of names; other values need no new program.

    Values are clipped to what float32 and int32 can hold: a temperature that would become 0, or a top_k beyond int32.
    """
    penalty = {} if self.repetition_penalty == 1 else {'repetition_penalty': self.repetition_penalty}
    if self.temperature == 0:
      return penalty
    off = {'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
    filters = {name: getattr(self, name) for name in off if getattr(self, name) != off[name]}
    filters |= {'top_p': max(filters['top_p'], SMALLEST)} if 'top_p' in filters else {}
    filters |= {'top_k': min(filters['top_k'], 2**31 - 1)} if 'top_k' in filters else {}
    return {'temperature': min(max(self.temperature, SMALLEST), 1 / SMALLEST), **filters, **penalty}
