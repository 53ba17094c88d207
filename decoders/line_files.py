"""What the commands share that turn each line of --input into lines of --output: reading, and continuing after an interruption."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import hashlib
import itertools
import os
from pathlib import Path
import sys
from typing import Any

from decoders.resumable import Blocks, as_lines
from jaxlm.io.locks import exclusive

Lines = Iterable[tuple[str, str]]
"""(Name of a line for messages, its text)."""
Write = Callable[[Sequence[str]], None]


def check_flags(text: Sequence[str], input: str | None, output: str | None, batch_size: int) -> None:
  """Raises ValueError unless there is one of text and input, and output only with the latter."""
  if bool(text) == (input is not None):
    raise ValueError('Pass either --text TEXT ... or --input FILE.')
  if output is not None and input is None:
    raise ValueError('--output FILE is for --input FILE.')
  if batch_size < 1:
    raise ValueError(f'{batch_size=} must be at least 1.')


def texts_of(text: Sequence[str]) -> list[str]:
  """Returns the texts of --text, in which '-' stands for the lines of standard input."""
  return [line for one in text for line in (sys.stdin.read().splitlines() if one == '-' else [one])]


def lines_of(input: str) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of each line. Raises DataError for a file that cannot be read or is not UTF-8."""
  from jaxlm.data.reading import numbered_lines

  for number, line in numbered_lines(Path(input)):
    yield f'{input}, line {number}', line.removesuffix('\n')


def print_lines(lines: Sequence[str]) -> None:
  """Prints lines; line ends within one become spaces."""
  sys.stdout.write(as_lines(lines))
  sys.stdout.flush()


def turn_file(
  input: str,
  output: str | None,
  model: str,
  settings: dict[str, Any],
  load: Callable[[], Any],
  turn: Callable[[Any, Lines, Write, int, int], None],
  *,
  per_line: int = 1,
) -> None:
  """Turns the lines of a file into those of another one, or prints them.

  Args:
    input, output: paths; no output is standard output. An interrupted output is continued, see `decoders.resumable`.
    model: where the model is. With `settings`, it must be that of the interrupted run.
    load: returns the model. It is called after the files have been checked.
    turn: called with (model, lines that are left, function that writes lines, number of all lines, number of those done before).
    per_line: number of lines that are written for each line.

  Raises:
    ValueError: the input is no file or empty; the output belongs to something else, or is being written by another process.
    DataError: as `lines_of`.
  """
  path = Path(input)
  if path.exists() and not path.is_file():
    raise ValueError(f'{input} is no file, and it is read more than once: give the lines of a pipe to --text -.')
  digest, total = hashlib.sha256(), 0
  for _, line in lines_of(input):
    digest.update(line.encode() + b'\n')
    total += 1
  if not total:
    raise ValueError(f'{input} is empty: expected a text on each line.')
  if output is None:
    turn(load(), lines_of(input), print_lines, total, 0)
    return
  facts = {'model': os.path.realpath(model) if os.path.exists(model) else model, **settings}
  facts |= {'sources': total, 'sha256 of the input': digest.hexdigest()}
  busy = ValueError(f'{output} is being written by another process: wait for it, or name another file.')
  with exclusive(f'{output}.lock', busy):
    blocks = Blocks(Path(output), facts, per_line)
    turn(load(), itertools.islice(lines_of(input), blocks.done, None), blocks.write, total, blocks.done)
    blocks.end()
