"""metrics.jsonl survives kills and what others write into it."""

import json
import os

import pytest

from jaxlm.io import atomic
from trainers import metrics
from trainers.config import RunConfig

ROWS = [{'step': step, 'loss': 1.5 / step} for step in (1, 2, 3)]
TEXT = ''.join(json.dumps(row) + '\n' for row in ROWS)


def opened(directory, step, said):
  settings = RunConfig(tensorboard=False)
  return metrics.MetricLog(directory, settings, step=step, settings={}, write=True, say=said.append)


def test_what_came_after_the_step_is_forgotten_and_a_half_line_is_no_line(tmp_path):
  path, said = tmp_path / 'metrics.jsonl', []
  path.write_text(TEXT + '{"step": 4, "lo')
  assert metrics.read(tmp_path) == ROWS
  log = opened(tmp_path, 2, said)
  log.write(3, {'loss': float('nan')})
  log.close()
  assert metrics.read(tmp_path) == [*ROWS[:2], {'step': 3, 'loss': None}] and not said


@pytest.mark.parametrize(
  'foreign', [b'{"a": 1}', b'[1]', b'\xff\xfe\x00', b'\x00' * 9, b'{"step": "many"}', b'[' * 9999]
)
def test_lines_of_others_are_named_and_kept_in_a_copy(tmp_path, foreign):
  path, said = tmp_path / 'metrics.jsonl', []
  lines = TEXT.encode().splitlines(keepends=True)
  path.write_bytes(b''.join([lines[0], foreign + b'\n', *lines[1:]]))
  before = path.read_bytes()
  assert metrics.read(tmp_path) == ROWS
  opened(tmp_path, 2, said).close()
  assert metrics.read(tmp_path) == ROWS[:2] and len(path.read_bytes().splitlines()) == 2
  assert (tmp_path / 'metrics.jsonl.foreign-1').read_bytes() == before
  assert len(said) == 1 and 'the first is line 2' in said[0] and 'metrics.jsonl.foreign-1 keeps them' in said[0]


def test_a_kill_while_a_run_resumes_leaves_the_lines(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(TEXT)

  def killed(*_):
    raise KeyboardInterrupt

  for name in ('fsync', 'replace'):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      patch.setattr(os, name, killed)
      opened(tmp_path, 2, [])
    assert path.read_text() == TEXT


def test_an_atomic_write_keeps_a_link_and_writes_utf_8(tmp_path):
  (tmp_path / 'real').write_text('old')
  (tmp_path / 'link').symlink_to('real')
  atomic.write_atomically(tmp_path / 'link', 'é')
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'real').read_bytes() == 'é'.encode()
