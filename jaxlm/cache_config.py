"""Configuration of KIVI cache quantisation. This file does not import JAX, so that a command shows its help at once."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class KiviConfig:
  """How keys and values in the cache are quantised, and how many of the newest tokens are kept unquantised."""

  bits: int = 4
  """Bits per quantised number: 2, 4 or 8. Fewer bits take less memory and lose accuracy."""
  group: int = 32
  """How many numbers share a scale and a minimum: consecutive tokens for keys, consecutive channels for values. Smaller groups
  are more accurate and take more memory."""
  residual: int = 32
  """Number of newest tokens kept unquantised, a multiple of `group`. Keys are quantised in blocks of this many tokens."""

  def __post_init__(self):
    if self.bits not in (2, 4, 8):
      raise ValueError(f'{self.bits=} is not 2, 4 or 8, which fill a byte.')
    if self.group < 1 or self.residual < 1:
      raise ValueError(f'{self.group=} and {self.residual=} must be at least 1.')
    if self.residual % self.group:
      raise ValueError(f'{self.residual=} is not a multiple of {self.group=}: keys are quantised in whole groups.')

  def check_head_dim(self, head_dim: int) -> None:
    """Raises ValueError if groups do not divide the head size, or if the codes of a head do not fill whole bytes."""
    if head_dim % self.group:
      raise ValueError(f'{self.group=} does not divide the head size {head_dim}: choose a divisor.')
    if head_dim * self.bits % 8:
      raise ValueError(f'{head_dim} codes of {self.bits} bits are no whole number of bytes.')

  def bytes(self, tokens: int, head_dim: int, exact: int) -> float:
    """Returns the bytes that one head's keys and values take for `tokens` tokens, 16-bit scales and minima included.

    `exact` is the size in bytes of a number that is not quantised.
    """
    per_number = (self.bits + 32 / self.group) / 8
    quantised = tokens // self.residual * self.residual + max(tokens - self.residual, 0)
    return head_dim * (quantised * per_number + (2 * tokens - quantised) * exact)
