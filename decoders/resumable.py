"""An output file that is written block by block, and gone on with after an interruption.

Beside an unfinished OUTPUT lies OUTPUT.unfinished.json with what it is made of. It is removed when all is written. So an output
without it is somebody's file, which is left alone, and one whose facts differ belongs to another run.
"""

from collections.abc import Sequence
import json
import os
from pathlib import Path
from typing import Any

from jaxlm.errors import shown
from jaxlm.io.atomic import write_atomically


def as_lines(texts: Sequence[str]) -> str:
  """Returns texts as lines; line ends within a text become spaces."""
  return ''.join(' '.join(text.splitlines()) + '\n' for text in texts)


def note_of(output: Path) -> Path:
  """Returns the path of the note that lies beside an unfinished output."""
  return output.with_name(f'{output.name}.unfinished.json')


def check_facts(note: Path, facts: dict[str, Any], otherwise: str, fix: str) -> dict[str, Any]:
  """Returns what a note says, a JSON object that has the same `facts`, and may have more.

  Args:
    otherwise: beginning of the message if a fact differs: what the output is then.
    fix: end of each message.

  Raises:
    ValueError: the note is damaged, or a fact differs; the message has both values.
    OSError: it cannot be read.
  """
  try:
    there = json.loads(note.read_text(encoding='utf-8'))
    different = [name for name in facts if there[name] != facts[name]]
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(f'{note} is damaged, so what lies beside it is not known. {fix}.') from e
  if different:
    name = different[0]
    raise ValueError(f'{otherwise}: its {name} is {shown(there[name])}, and here it is {shown(facts[name])}. {fix}.')
  return there


class Blocks:
  """Writes the lines of an output, `per_source` for each source.

  Attributes:
    done: sources whose lines are there from an earlier run.
  """

  def __init__(self, output: Path, facts: dict[str, Any], per_source: int):
    """Looks at what is there, and writes nothing.

    Raises:
      ValueError: an output that does not belong to this run, or more lines than `facts['sources']` sources have.
      OSError: it cannot be read.
    """
    self.output, self.facts, self.per_source = output, facts, per_source
    self.note = note_of(output)
    self.done = self._size = 0
    self._begun = False
    if self.note.exists():
      fix = f'Go on with the settings of the first run, or remove {self.output} and {self.note}'
      check_facts(self.note, facts, f'{output} is the unfinished output of another run', fix)
    elif output.exists():
      raise ValueError(
        f'{output} is there already, and is not the unfinished output of this command: name another file, or remove it.'
      )
    if output.exists():
      self.done, self._size = self._complete()

  def write(self, lines: Sequence[str]) -> None:
    """Appends the lines of further sources; see `as_lines`."""
    self._begin()
    with open(self.output, 'ab') as file:
      file.write(as_lines(lines).encode())
      file.flush()
      os.fsync(file.fileno())

  def end(self) -> None:
    """Removes the note: all is written."""
    self._begin()
    self.note.unlink()

  def _begin(self) -> None:
    """Writes the note, and cuts off what is there of a source whose lines are not complete. A second call does nothing.

    It is called when there are lines to write: what fails before leaves no files.
    """
    if self._begun:
      return
    write_atomically(self.note, json.dumps(self.facts, indent=2) + '\n')
    with open(self.output, 'ab') as file:
      file.truncate(self._size)
    self._begun = True

  def _complete(self) -> tuple[int, int]:
    """Returns (sources of which all lines are there, the bytes of these lines)."""
    lines = size = complete = 0
    with open(self.output, 'rb') as file:
      for line in file:
        if not line.endswith(b'\n'):
          break
        lines, size = lines + 1, size + len(line)
        complete = size if lines % self.per_source == 0 else complete
    if lines > self.facts['sources'] * self.per_source:
      raise ValueError(
        f'{self.output} has {lines} lines, more than the {self.facts["sources"] * self.per_source} of this input: remove it and '
        f'{self.note}.'
      )
    return lines // self.per_source, complete
