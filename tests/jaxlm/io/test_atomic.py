import os

import pytest

from jaxlm.io.atomic import write_atomically


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
  path = tmp_path / 'x.json'
  for text in ('one', 'two'):
    write_atomically(path, text)
    assert path.read_text() == text
  assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for name in ('pipe', '.'):
    with pytest.raises(OSError, match='no file'):
      write_atomically(tmp_path / name, 'text')
  assert (tmp_path / 'pipe').is_fifo()
