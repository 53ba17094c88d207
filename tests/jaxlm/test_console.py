"""Commands end without a traceback when their reader goes away, and on Ctrl-C; help fits any terminal."""

import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from jaxlm import console

ROOT = Path(__file__).parents[2]
COMMANDS = ['trainers.pretrain', 'decoders.generate', 'decoders.translate', 'jaxlm.data.fetch']
MORE = ['jaxlm.analysis.sinks', 'jaxlm.analysis.evaluate', 'jaxlm.analysis.laziness', 'jaxlm.analysis.direction']


def start(*command, **environment):
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | environment, **pipes)


@pytest.mark.parametrize('module', [*COMMANDS, *(pytest.param(m, marks=pytest.mark.slow) for m in MORE)])
def test_help_whose_reader_is_gone_ends_quietly(module):
  process = start('-m', module, '--help', PYTHONUNBUFFERED='1')
  process.stdout.close()
  # argparse passes over what its help cannot be written to.
  codes = (0, 128 + signal.SIGPIPE) if module == 'jaxlm.data.fetch' else (128 + signal.SIGPIPE,)
  assert process.stderr.read() == b'' and process.wait(60) in codes


def test_what_is_only_written_at_the_end_fails_as_quietly():
  process = start('-c', 'import time\nfrom jaxlm import console\nwith console.command():\n  time.sleep(1)\n  print(9)')
  process.stdout.close()
  assert process.stderr.read() == b'' and process.wait(60) == 128 + signal.SIGPIPE


@pytest.mark.parametrize('flags, code', [('', -signal.SIGINT), ('cleans_up=True', 128 + signal.SIGINT)])
def test_ctrl_c_ends_a_command_quietly(flags, code):
  body = 'print(1, flush=True)\n    time.sleep(60)'
  lines = 'import time', 'from jaxlm import console', f'with console.command({flags}):', '  try:', f'    {body}'
  process = start('-c', '\n'.join([*lines, '  finally:', '    print("cleaned", flush=True)']))
  process.stdout.readline()
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (code, b'') and (b'cleaned' in out) == bool(flags)


@pytest.mark.parametrize('columns, bounded', [('4', '40'), ('40', '40'), ('100', '100'), ('1000000000', '500')])
def test_the_width_of_help_is_bounded(monkeypatch, columns, bounded):
  monkeypatch.setenv('COLUMNS', columns)
  console.bound_width()
  assert os.environ['COLUMNS'] == bounded


def test_help_in_a_narrow_terminal_takes_no_time_and_memory():
  process = start('-m', 'trainers.pretrain', '--help', COLUMNS='4')
  out, err = process.communicate(timeout=20)
  assert process.returncode == 0 and b'--run.steps' in out.replace(b'\n', b'') and not err
