"""A corpus that a model writes: no line is lost or made twice, and it is used for what it was made from alone."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from decoders.resumable import Blocks
from jaxlm.errors import DataError
from trainers.made_corpus import DIGEST, MadeCorpus


@dataclasses.dataclass(frozen=True)
class Squares(MadeCorpus):
  path: Path
  count: int = 3
  made: list = dataclasses.field(default_factory=list)
  stop: int | None = None
  flag: ClassVar[str] = '--squares.file'

  @property
  def facts(self) -> dict[str, Any]:
    return {'sources': self.count}

  def write(self, out: Blocks) -> None:
    for i in range(out.done, self.count):
      if i == self.stop:
        raise ValueError('the model has no square')
      self.made.append(i)
      out.write([str(i * i)])


def test_what_is_missing_is_made_and_a_finished_file_is_used_again(tmp_path):
  path = tmp_path / 'squares'
  stopped, rest, again = Squares(path, stop=2), Squares(path), Squares(path)
  with pytest.raises(DataError, match='the model has no square'):
    stopped.make()
  assert stopped.made == [0, 1] and not stopped.is_finished
  note = rest.make()
  assert rest.made == [2] and path.read_text() == '0\n1\n4\n' and note['sources'] == 3 and len(note[DIGEST]) == 64
  assert again.make() == note and again.made == []
  assert sorted(p.name for p in tmp_path.iterdir()) == ['squares', 'squares.made-from.json']


def test_other_facts_and_changed_files_are_refused(tmp_path):
  path = tmp_path / 'squares'
  Squares(path).make()
  with pytest.raises(
    DataError, match='was made from something else: its sources is 3, and here it is 4.*--squares.file'
  ):
    Squares(path, count=4).make()
  path.write_text('0\n1\n5\n')
  with pytest.raises(DataError, match='was changed after it was made. Name another file with --squares.file'):
    Squares(path).make()
