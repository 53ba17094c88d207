"""Errors that say what was wrong, with the value, and what to do."""

from collections.abc import Iterable
import difflib
import operator


class DataError(ValueError):
  """A data source that is missing, empty or not what it was said to be."""


class CheckpointError(ValueError):
  """Weights that cannot be read, or that do not fit their config; the message names the file or the parameter."""


class DivergedError(ArithmeticError):
  """A training loss that is no longer finite."""


class NotFiniteError(ArithmeticError, ValueError):
  """Logits of a decoder that are not finite; the message names the row, the position and the dtype."""


def check_seed(name: str, seed: object) -> None:
  """Raises ValueError for a seed that is no whole number from 0 to 2**32 - 1.

  JAX makes keys of 32 bits, so that another seed would repeat the numbers of one within.
  """
  try:
    good = not isinstance(seed, bool) and 0 <= operator.index(seed) < 2**32
  except TypeError:
    good = False
  if not good:
    raise ValueError(
      f'{name}={shown(seed)} must be a whole number within 0 .. 2**32 - 1: JAX takes 32 bits, and others would repeat.'
    )


def shown(value: object, most: int = 100) -> str:
  """Returns a value for a message, cut where it is long: a damaged file may hold anything."""
  text = repr(value)
  return text if len(text) <= most else f'{text[:most]}...'


def unknown(kind: str, name: object, options: Iterable[str], error: type[Exception] = ValueError) -> Exception:
  """Returns (does not raise) an error for a name that is not among `options`, suggesting the nearest."""
  options = sorted(options)
  near = difflib.get_close_matches(str(name)[:100], options, n=1, cutoff=0.5)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return error(f'Unknown {kind} {shown(name)}.{hint} Known: {", ".join(options)}.')
