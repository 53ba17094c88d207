"""Rounds lengths up to a few sizes, so that few programs are compiled."""


def bucket(n: int) -> int:
  """Rounds n up to a multiple of max(16, p / 4), where p is the largest power of two that is not above n."""
  step = max(16, 1 << max(0, n.bit_length() - 3))
  return -(-n // step) * step
