"""The accelerator benchmark on a CPU: every part runs, needs nothing else installed, and failures and limits are recorded."""

import json
import os
from pathlib import Path
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from benchmarks import report
from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import attention, speculation
from benchmarks.accelerator.record import OUT_OF_TIME, Case, Record

ROOT = Path(__file__).parents[2]
ABSENT = (
  'tyro', 'gguf', 'grain', 'orbax', 'tensorflow_datasets', 'tensorboardX', 'jaxtyping', 'tokenizers', 'sentencepiece',
  'safetensors', 'matplotlib', 'tqdm', 'jinja2', 'etils', 'torch', 'transformers',
)  # fmt: skip
WITHOUT = f"""
import sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {ABSENT}:
      raise ModuleNotFoundError(f'No module named {{name!r}}')

sys.meta_path.insert(0, Absent())
from benchmarks.accelerator.__main__ import PARTS
import importlib
for part in PARTS:
  importlib.import_module('benchmarks.accelerator.' + part.replace('-', '_'))
import decoders, jaxlm
decoders.generate, decoders.swift.Stream, decoders.simlayerkv.compress, jaxlm.forward
"""


def test_it_needs_jax_flax_optax_and_numpy_only():
  done = subprocess.run([sys.executable, '-c', WITHOUT], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


# Those that take longest even on tiny shapes.
LONG = ('agreement', 'attention', 'beams', 'decode-attention', 'decoding', 'speculation', 'training')


@pytest.mark.parametrize(
  'part',
  [pytest.param(part, marks=pytest.mark.slow) if part in LONG else part for part in command.PARTS if part != 'peers'],
)
def test_every_part_runs(part, tmp_path, capsys):
  out = tmp_path / 'out.json'
  assert command.main(['--tiny', '--parts', part, '--out', str(out), '--seconds', '600']) == 0
  contents = json.loads(out.read_text())
  assert contents['rows'] and list(contents['parts']) == [part]
  assert all(row['part'] == part and 'error' not in row and 'skipped' not in row for row in contents['rows'])
  assert all(row.get('right', True) for row in contents['rows'])
  printed = capsys.readouterr().out
  assert printed.count('\n') == len(contents['rows']) + 2
  assert all(row['table'] in report.tables(contents) for row in contents['rows'])


@pytest.mark.slow
@pytest.mark.parametrize('part', ['peers'])
def test_the_peers_run_where_they_are_installed(part, tmp_path):
  pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')
  out = tmp_path / 'out.json'
  assert command.main(['--tiny', '--parts', part, '--out', str(out)]) == 0
  assert {row['table'] for row in json.loads(out.read_text())['rows']} == {'training step', 'decoding'}


def record(path, seconds=100.0):
  return Record(path, {'device': 'none'}, {}, seconds)


def broken():
  raise ValueError('no such thing')


def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path):
  r = record(tmp_path / 'r.json')
  r.run_part('p', lambda: [Case('t', {'n': 1}, broken), Case('t', {'n': 2}, lambda: {'ms': 3.0})])
  r.run_part('q', lambda: broken())
  first, second, third = json.loads((tmp_path / 'r.json').read_text())['rows']
  assert first['error'] == 'ValueError: no such thing' and first['where'].startswith('test_accelerator.py')
  assert second['ms'] == 3.0 and third['part'] == 'q' and 'error' in third


def test_nothing_is_started_when_the_time_is_over(tmp_path):
  r = record(tmp_path / 'r.json', seconds=0.0)
  r.run_part('p', lambda: [Case('t', {}, broken)])
  assert 'skipped' in json.loads((tmp_path / 'r.json').read_text())['rows'][0]


HANGING = """
import sys, threading, time
from pathlib import Path
from benchmarks.accelerator.record import Case, Record

r = Record(Path(sys.argv[1]), {}, {}, 0.5)
with r.watching(grace=0.0):
  r.run_part('p', lambda: [Case('t', {'n': 1}, lambda: {'ms': 1.0}), Case('t', {'n': 2}, lambda: time.sleep(60))])
"""


def test_a_case_that_hangs_ends_the_process_and_what_was_measured_stays(tmp_path):
  start, path = time.monotonic(), tmp_path / 'r.json'
  done = subprocess.run(
    [sys.executable, '-c', HANGING, str(path)], cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
  )
  assert done.returncode == OUT_OF_TIME and time.monotonic() - start < 30
  measured, ended = json.loads(path.read_text())['rows']
  assert measured['ms'] == 1.0 and "'n': 2" in ended['error']


def test_a_process_that_goes_on_after_the_cases_is_left_alone(tmp_path):
  r = record(tmp_path / 'r.json')
  running = lambda: [t for t in threading.enumerate() if isinstance(t, threading.Timer) and not t.finished.is_set()]
  with r.watching():
    assert len(running()) == 1
  assert not running()
  with pytest.raises(ValueError), r.watching():
    broken()
  assert not running()


def test_a_cpu_is_refused_without_tiny():
  with pytest.raises(SystemExit, match='--tiny'):
    command.main(['--parts', 'chip'])


@pytest.mark.parametrize('operation', ['softmax', 'sigmoid'])
def test_the_float64_reference_has_its_own_gradients(operation):
  """Against finite differences, so that the reference does not rest on the formulas of the kernels."""
  rng = np.random.default_rng(0)
  q, k, v, dout = (rng.standard_normal(s) for s in ((1, 6, 4, 3), (1, 6, 2, 3), (1, 6, 2, 3), (1, 6, 4, 3)))
  options = {
    'operation': operation,
    'window': 4,
    'alibi_slopes': [0.1, 0.2, 0.3, 0.4],
    'segments': [[0, 0, 0, 1, 1, 1]],
    'prefix': 2,
    'softcap': 1.5,
    'slot_logit': [-1.0, 0.0, 0.5, 1.0],
  }
  loss = lambda *qkv: float((attention.in_float64(*qkv, dout, **options)[0] * dout).sum())
  _, *gradients = attention.in_float64(q, k, v, dout, **options)
  for i, gradient in enumerate(gradients):
    direction = rng.standard_normal(gradient.shape)
    moved = lambda step, i=i, d=direction: [x + step * d if i == j else x for j, x in enumerate((q, k, v))]
    slope = (loss(*moved(1e-5)) - loss(*moved(-1e-5))) / 2e-5
    np.testing.assert_allclose(slope, (gradient * direction).sum(), rtol=1e-6)


def test_gains_are_those_of_the_formula():
  from benchmarks.accelerator.setting import ACCELERATOR

  free = {'plain': 1.0, **{n: 1.0 for n in ACCELERATOR.verified}}
  assert speculation.gains(free, 'lookup', ACCELERATOR)['accepted 90%'] == pytest.approx((1 - 0.9**32) / 0.1)
  dear = {'plain': 1.0, **{n: float(n) for n in ACCELERATOR.verified}, 0.5: 1.0}
  assert speculation.gains(dear, 0.5, ACCELERATOR)['accepted 95%'] == 1.0
