"""Errors that say what was wrong, with the value, and what to do."""

from collections.abc import Iterable
import difflib


class DataError(ValueError):
  """A data source that is missing, empty or not what it was said to be."""


class CheckpointError(ValueError):
  """Weights that cannot be read, or that do not fit their config; the message names the file or the parameter."""


class DivergedError(ArithmeticError):
  """A training loss that is no longer finite."""


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
