"""Exception types, and helpers for error messages."""

from collections.abc import Iterable
import difflib
import operator


class DataError(ValueError):
  """A data source is missing, empty or not of the expected format."""


class CheckpointError(ValueError):
  """Weights cannot be read, or do not fit their config; the message names the file or the parameter."""


class DivergedError(ArithmeticError):
  """The training loss is no longer finite."""


class NotFiniteError(ArithmeticError, ValueError):
  """The logits of a decoder are not finite; the message names the row, the position and the dtype."""


def check_seed(name: str, seed: object) -> None:
  """Raises ValueError unless the seed is a whole number from 0 to 2**32 - 1.

  JAX uses 32 bits of a seed, so a seed outside of this range gives the same random numbers as a seed inside.
  """
  try:
    good = not isinstance(seed, bool) and 0 <= operator.index(seed) < 2**32
  except TypeError:
    good = False
  if not good:
    raise ValueError(
      f'{name}={shown(seed)} must be a whole number within 0 .. 2**32 - 1: JAX uses 32 bits of a seed, so others would repeat.'
    )


def shown(value: object, most: int = 100) -> str:
  """Returns repr(value) for a message, cut to `most` characters: a value from a damaged file may be very long."""
  text = repr(value)
  return text if len(text) <= most else f'{text[:most]}...'


def unknown(kind: str, name: object, options: Iterable[str], error: type[Exception] = ValueError) -> Exception:
  """Returns (does not raise) an error for a name that is not among `options`, suggesting the nearest."""
  options = sorted(options)
  near = difflib.get_close_matches(str(name)[:100], options, n=1, cutoff=0.5)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return error(f'Unknown {kind} {shown(name)}.{hint} Known: {", ".join(options)}.')
