"""What runs beside training may fail or hang: it is named once, and the run goes on."""

import json
import os
import signal
import struct
import sys
import threading
import time
import types

import chex
import jax
import pytest

from jaxlm import console
from jaxlm.io import checkpoint
from tests.trainers import tiny
from tests.trainers.test_loop import logged
from trainers import loop, metrics, progress, side, stopping


class Writer:
  """Keeps what it is given; `wrong` is called before each value and may fail or wait."""

  def __init__(self, wrong=lambda: None):
    self.values, self.wrong, self.closed = [], wrong, False

  def write(self, step, values):
    self.wrong()
    self.values.append((step, values))

  def close(self):
    self.closed = True


def full():
  raise OSError(28, 'No space left on device')


def test_a_writer_gets_all_values_in_order_and_is_closed():
  writer, said = Writer(), []
  one = side.Side('Events', lambda: writer, said.append)
  for step in range(5):
    one.write(step, {'loss': 0.5})
  one.close()
  assert [step for step, _ in writer.values] == [0, 1, 2, 3, 4] and writer.closed and not said


def test_a_writer_that_fails_is_named_once():
  said = []
  one = side.Side('Events', lambda: Writer(full), said.append)
  one.write(1, {})
  one._thread.join()
  one.write(2, {})
  one.write(3, {})
  one.close()
  assert len(said) == 1 and 'Events is left out' in said[0] and 'No space left' in said[0]


def test_a_writer_that_hangs_stops_neither_the_loop_nor_its_end(monkeypatch):
  monkeypatch.setattr(side, 'WAITING', 3)
  gate, said = threading.Event(), []
  one = side.Side('Events', lambda: Writer(gate.wait), said.append)
  start = time.monotonic()
  for step in range(10):
    one.write(step, {})
  assert len(said) == 1 and 'values wait for it' in said[0]
  other = side.Side('Service', lambda: Writer(gate.wait), said.append)
  other.write(1, {})
  other.close(patience=0.2)
  assert time.monotonic() - start < 5 and 'did not finish within 0.2 seconds' in said[1]
  gate.set()


def test_a_run_goes_on_when_all_at_its_side_fails(tmp_path, monkeypatch, capsys):
  from tensorboardX.event_file_writer import EventsWriter

  monkeypatch.setattr(EventsWriter, 'write_event', lambda self, event: full())
  monkeypatch.setattr(loop, 'plot_losses', lambda directory: full())
  broken = types.ModuleType('wandb')
  broken.init = lambda **_: (_ for _ in ()).throw(RuntimeError('no network'))
  monkeypatch.setitem(sys.modules, 'wandb', broken)
  tiny.fit(tiny.config(tmp_path / 'run', tensorboard=True, wandb='project', steps=2))
  out = capsys.readouterr().out
  assert checkpoint.steps(tmp_path / 'run' / 'checkpoints') == [2]
  for message in ('TensorBoard is left out', 'Weights & Biases is left out', 'The loss curve: left out'):
    assert out.count(message) == 1, out


def test_weights_and_biases_get_the_values(tmp_path, monkeypatch):
  log, service = [], types.ModuleType('wandb')
  service.init = lambda **kwargs: (
    log.append(kwargs)
    or types.SimpleNamespace(log=lambda values, step: log.append((step, values)), finish=lambda: log.append('finished'))
  )
  monkeypatch.setitem(sys.modules, 'wandb', service)
  tiny.fit(tiny.config(tmp_path / 'run', wandb='project', steps=2))
  assert log[0]['project'] == 'project' and log[0]['id'] == 'run' and log[-1] == 'finished'
  assert [step for step, _ in log[1:-1]] == [1, 2, 2]


def events(path):
  """Returns the events of a file of TensorBoard's: each between its length with a checksum, and another checksum."""
  from tensorboardX.proto.event_pb2 import Event

  data, found = path.read_bytes(), []
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    found.append(Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  return found


def test_events_begin_anew_behind_the_step_of_a_resumed_run(tmp_path):
  for step, values in ((0, [1, 2, 3]), (1, [2, 3])):
    writer = side.TensorBoard(tmp_path, step)
    for at in values:
      writer.write(at, {'loss': float(10 * step + at)})
    writer.close()
  first, second = sorted(tmp_path.glob('events*'), key=lambda path: path.name.endswith('.1'))
  numbers = lambda path: [(e.step, v.tag, v.simple_value) for e in events(path) for v in e.summary.value]
  assert numbers(first) == [(1, 'loss', 1.0), (2, 'loss', 2.0), (3, 'loss', 3.0)]
  assert numbers(second) == [(2, 'loss', 12.0), (3, 'loss', 13.0)]
  # TensorBoard drops what it has from the step of a START on.
  assert [e.step for e in events(second) if e.session_log.status == e.session_log.START] == [2]
  assert not any(e.session_log.status for e in events(first))


def test_lines_that_a_full_disk_does_not_take_are_written_later(tmp_path, monkeypatch):
  said = []
  file = metrics.MetricFile(tmp_path / 'metrics.jsonl', said.append)
  real, room = file._file, [3, None, None]

  class Disk:
    def write(self, data):
      if not room:
        return real.write(data)
      n = room.pop(0)
      return full() if n is None else real.write(data[:n])

    def close(self):
      real.close()

  file._file = Disk()
  for step in (1, 2, 3):
    file.write(json.dumps({'step': step}))
  file.close()
  assert [row['step'] for row in metrics.read(tmp_path)] == [1, 2, 3]
  assert len(said) == 1 and 'No space left' in said[0]


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_stop_a_run(tmp_path):
  process = tiny.start('--run.directory', str(tmp_path / 'run'), '--run.steps', '4', '--slow', '0.05')
  process.stdout.readline()
  process.stdout.close()
  assert process.wait(90) == 0
  assert checkpoint.steps(tmp_path / 'run' / 'checkpoints')[-1] == 4


def test_text_that_the_terminal_has_no_letters_for_is_shown_escaped(monkeypatch):
  import io

  out = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  monkeypatch.setattr(sys, 'stdout', out)
  progress.Progress(0, 1, show=True).say('a é')
  assert out.buffer.getvalue() == b'a \\xe9\n'


@pytest.mark.slow
def test_a_signal_breaks_an_evaluation_off_and_the_resumed_run_makes_it(tmp_path, monkeypatch):
  monkeypatch.setattr(stopping, 'GRACE', 0.2)
  whole = tiny.fit(tiny.config(tmp_path / 'whole', ema_decay=0.9))
  task = tiny.make_task(tiny.config(tmp_path / 'parts'))
  quick, count = task.eval_batches, []

  def slow(rows):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
      count.append(1)
      time.sleep(0.05)
      yield from quick(rows)

  task.eval_batches = slow
  with pytest.raises(SystemExit) as stopped:
    loop.fit(task, tiny.config(tmp_path / 'parts', ema_decay=0.9))
  assert stopped.value.code == 128 + 15 and len(count) < 100
  assert not any('valid/loss' in row for row in metrics.read(tmp_path / 'parts'))
  parts = tiny.fit(tiny.config(tmp_path / 'parts', ema_decay=0.9))
  chex.assert_trees_all_equal(jax.device_get(parts), jax.device_get(whole))
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole')


@pytest.mark.slow
def test_a_signal_in_the_last_evaluation_leaves_it_to_the_same_command(tmp_path, monkeypatch, capsys):
  tiny.fit(tiny.config(tmp_path / 'whole', eval_every=0, steps=2))
  monkeypatch.setattr(stopping.StopOnSignal, 'stop_evaluation', lambda self, n: setattr(self, 'received', 15) or True)
  with pytest.raises(SystemExit):
    tiny.fit(tiny.config(tmp_path / 'parts', eval_every=0, steps=2))
  monkeypatch.undo()
  tiny.fit(tiny.config(tmp_path / 'parts', eval_every=0, steps=2))
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole')
  capsys.readouterr()
  tiny.fit(tiny.config(tmp_path / 'parts', eval_every=0, steps=2))
  assert 'is complete at step 2' in capsys.readouterr().out


def test_ctrl_c_before_the_first_step_ends_a_command_at_once(tmp_path):
  """Python's way of ending would print a traceback, and crash now and then in threads that JAX has begun."""
  import subprocess

  code = 'import time\nfrom jaxlm import console\nwith console.command():\n  print(1, flush=True)\n  time.sleep(60)'
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  process.stdout.readline()
  process.send_signal(signal.SIGINT)
  assert process.wait(20) == -signal.SIGINT and process.stderr.read() == b''


def test_a_silenced_stream_takes_what_is_written(tmp_path):
  read, write = os.pipe()
  os.close(read)
  with os.fdopen(write, 'w') as stream:
    stream.write('lost')
    with pytest.raises(BrokenPipeError):
      stream.flush()
    console.silence(stream)
    print('nowhere', file=stream, flush=True)
