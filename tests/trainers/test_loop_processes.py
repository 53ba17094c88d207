"""Real processes: signals, kills at any moment, and two hosts."""

import random
import signal
import socket
import time

import chex
import jax
import numpy as np
import pytest

from jaxlm.io import checkpoint
from tests.trainers import tiny
from tests.trainers.test_loop import logged
from trainers import metrics


def wait(process, timeout=120):
  out, _ = process.communicate(timeout=timeout)
  return process.returncode, out


def until(condition, process, timeout=90):
  """Waits until condition(); fails with the process's output if it ends before that."""
  end = time.monotonic() + timeout
  while not condition():
    if process.poll() is not None or time.monotonic() > end:
      process.kill()
      pytest.fail(f'It ended with {process.returncode} or took too long: {process.communicate()[0]}')
    time.sleep(0.02)


def arrays(directory):
  """Returns the newest checkpoint's step and its params, as NumPy arrays."""
  step = checkpoint.steps(directory / 'checkpoints')[-1]
  return step, jax.device_get(checkpoint.load_run(directory)[1])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of 12 steps that nothing stopped, in a process with one device."""
  directory = tmp_path_factory.mktemp('runs') / 'whole'
  code, out = wait(tiny.start('--run.directory', str(directory), '--run.steps', '12'))
  assert code == 0, out
  return directory


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes_bit_for_bit(tmp_path, whole, number):
  flags = '--run.directory', str(tmp_path / 'run'), '--run.steps', '12'
  process = tiny.start(*flags, '--slow', '0.1', '--run.save-every', '0')
  until(lambda: len(metrics.read(tmp_path / 'run')) >= 3, process)
  process.send_signal(number)
  code, out = wait(process)
  assert code == 128 + number, out
  step, _ = arrays(tmp_path / 'run')
  assert 3 <= step < 12 and f'saved step {step}' in out and 'same command again to resume' in out
  code, out = wait(tiny.start(*flags))
  assert code == 0 and f'resuming at step {step}' in out, out
  chex.assert_trees_all_equal(arrays(tmp_path / 'run'), arrays(whole))
  assert logged(tmp_path / 'run') == logged(whole)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in (3, 4))])
def test_kill_at_any_moment_leaves_a_run_that_resumes(tmp_path, whole, seed):
  """Kills a run that saves after every step again and again, then lets it finish."""
  rng = random.Random(seed)
  flags = '--run.directory', str(tmp_path / 'run'), '--run.steps', '12', '--run.save-every', '1'
  for _ in range(4):
    process = tiny.start(*flags, '--slow', '0.05')
    have = checkpoint.steps(tmp_path / 'run' / 'checkpoints')
    # Anywhere from the start of the program to some steps after its first save; saves take most of a step.
    newer = lambda have=have: checkpoint.steps(tmp_path / 'run' / 'checkpoints') != have
    until(newer if rng.random() < 0.8 else lambda: True, process)
    time.sleep(rng.random() * 0.3)
    process.kill()
    process.communicate()
    if steps := checkpoint.steps(tmp_path / 'run' / 'checkpoints'):
      arrays(tmp_path / 'run')
    if steps and steps[-1] >= 10:  # The next one would have nothing left to do.
      break
  code, out = wait(tiny.start(*flags))
  assert code == 0, out
  chex.assert_trees_all_equal(arrays(tmp_path / 'run'), arrays(whole))
  assert logged(tmp_path / 'run') == logged(whole)


def test_kill_during_a_save_leaves_the_checkpoint_before_it(tmp_path):
  flags = '--run.directory', str(tmp_path / 'run'), '--run.steps', '12', '--run.save-every', '1'
  folder = tmp_path / 'run' / 'checkpoints'
  process = tiny.start(*flags, '--slow', '0.1')
  until(lambda: checkpoint.steps(folder) and list(folder.glob('*tmp*')), process)
  process.kill()
  process.communicate()
  step, params = arrays(tmp_path / 'run')
  assert step >= 1 and all(np.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize('mesh', ['1', '2'], ids=['data', 'fsdp'])
def test_two_hosts_equal_one(tmp_path, whole, mesh):
  # Ports are taken anew by the coordinator: another program could be quicker, but then the test fails, it cannot hang.
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  flags = '--run.directory', str(tmp_path / 'run'), '--run.steps', '12', '--mesh.fsdp', mesh
  hosts = [
    tiny.start(
      *flags, '--distributed.coordinator', address, '--distributed.num-processes', '2', '--distributed.process-id', i
    )
    for i in '01'
  ]
  results = [wait(host) for host in hosts]
  assert [code for code, _ in results] == [0, 0], results
  assert 'step 12/12' in results[0][1] and 'step 12/12' not in results[1][1]
  chex.assert_trees_all_close(arrays(tmp_path / 'run'), arrays(whole), atol=1e-5)
  ours, theirs = logged(tmp_path / 'run'), logged(whole)
  np.testing.assert_allclose(
    [r['loss'] for r in ours if 'loss' in r], [r['loss'] for r in theirs if 'loss' in r], rtol=1e-5
  )


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
  flags = '--run.directory', str(tmp_path / 'run')
  first = tiny.start(*flags, '--slow', '0.2')
  until(lambda: (tmp_path / 'run' / 'config.json').exists(), first)
  code, out = wait(tiny.start(*flags))
  first.kill()
  first.communicate()
  assert code == 1 and 'Another process is training' in out, out
