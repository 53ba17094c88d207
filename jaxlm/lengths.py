"""Few lengths, so that few programs are compiled."""


def bucket(n: int) -> int:
  """Rounds a length up to one of few sizes: multiples of 16, and of a quarter of the power of two below."""
  step = max(16, 1 << max(0, n.bit_length() - 3))
  return -(-n // step) * step
