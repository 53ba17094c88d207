"""How a cache is quantised, as plain data: no JAX here, so that a command shows its help at once."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class KiviConfig:
  """How coarsely, and how many of the newest tokens not at all."""

  bits: int = 4
  """Bits of a code: 2, 4 or 8."""
  group: int = 32
  """Numbers that share a scale and a minimum: tokens of a key channel, channels of a value."""
  residual: int = 32
  """Newest tokens that stay exact; keys are quantised so many at a time."""

  def __post_init__(self):
    if self.bits not in (2, 4, 8):
      raise ValueError(f'{self.bits=} is not 2, 4 or 8, which fill a byte.')
    if self.group < 1 or self.residual < 1:
      raise ValueError(f'{self.group=} and {self.residual=} must be at least 1.')
    if self.residual % self.group:
      raise ValueError(f'{self.residual=} is not a multiple of {self.group=}: keys are quantised in whole groups.')

  def check_head_dim(self, head_dim: int) -> None:
    """Raises ValueError if the heads of a model cannot be cut into groups, or their codes into bytes."""
    if head_dim % self.group:
      raise ValueError(f'{self.group=} does not divide the head size {head_dim}: choose a divisor.')
    if head_dim * self.bits % 8:
      raise ValueError(f'{head_dim} codes of {self.bits} bits are no whole number of bytes.')

  def bytes(self, tokens: int, head_dim: int, exact: int) -> float:
    """Returns the bytes of so many tokens' keys and values in one head, 16-bit scales and minima included.

    `exact` is the bytes of a number that is not quantised.
    """
    per_number = (self.bits + 32 / self.group) / 8
    quantised = tokens // self.residual * self.residual + max(tokens - self.residual, 0)
    return head_dim * (quantised * per_number + (2 * tokens - quantised) * exact)
