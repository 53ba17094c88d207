"""A corpus that a model writes: made once, continued after an interruption, and used only for what it was made from.

Beside an unfinished corpus FILE lies FILE.unfinished.json, and beside a finished one FILE.made-from.json: they hold the facts that the
corpus depends on, and the latter the file's digest.
"""

import abc
import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

from decoders.resumable import Blocks, check_facts, note_of
from jaxlm.errors import DataError
from jaxlm.io.atomic import write_atomically
from jaxlm.io.locks import exclusive

DIGEST = 'sha256 of this file'


class MadeCorpus(abc.ABC):
  """Base of corpora; a subclass has `path` and `facts`, writes the lines, and may tell more of a finished file.

  Attributes:
    path: FILE.
    flag: the flag that names another file, for messages.
    lines: number of lines for each of the `facts['sources']` sources.
    or_else: what else a user can do with a changed file.
  """

  path: Path
  flag: ClassVar[str]
  lines: int = 1
  or_else: ClassVar[str] = ''

  @property
  @abc.abstractmethod
  def facts(self) -> dict[str, Any]:
    """What the corpus depends on, as JSON, and the number of its 'sources'."""

  @abc.abstractmethod
  def write(self, out: Blocks) -> None:
    """Writes the lines of all sources after the first `out.done`."""

  def summary(self) -> dict[str, Any]:
    """Returns what is noted of the finished file besides the facts; DIGEST is among it."""
    with open(self.path, 'rb') as file:
      return {DIGEST: hashlib.file_digest(file, 'sha256').hexdigest()}

  @property
  def note(self) -> Path:
    return self.path.with_name(f'{self.path.name}.made-from.json')

  @property
  def is_finished(self) -> bool:
    return self.path.exists() and self.note.exists() and not note_of(self.path).exists()

  def make(self) -> dict[str, Any]:
    """Writes what is not written yet, and returns what FILE.made-from.json says.

    Raises:
      DataError: the corpus cannot be written, was made from something else, or was changed; or as `write`.
    """
    busy = DataError(f'{self.path} is being written by another process: wait for it, or name another {self.flag}.')
    fix = f'Name another file with {self.flag}, or remove {self.path} and {self.note}'
    try:
      if not self.is_finished:
        with exclusive(f'{self.path}.lock', busy):
          if not self.is_finished:
            self._make()
      note = check_facts(self.note, self.facts, f'{self.path} was made from something else', fix)
      if note.get(DIGEST) != self.summary()[DIGEST]:
        raise DataError(f'{self.path} was changed after it was made. {fix}.{self.or_else}')
    except DataError:
      raise
    except (OSError, ValueError) as e:
      raise DataError(str(e)) from e
    return note

  def _make(self) -> None:
    out = Blocks(self.path, self.facts, self.lines)
    self.write(out)
    # A process that is killed between these two leaves both notes, and the next one does this again.
    write_atomically(self.note, json.dumps(self.facts | self.summary(), indent=2) + '\n')
    out.end()
