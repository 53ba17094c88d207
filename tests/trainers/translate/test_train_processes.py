"""Runs of translation in processes of their own: two hosts and a mesh of eight devices give what one device gives."""

import socket

import chex
import jax
import numpy as np
import pytest

from tests.trainers import tiny
from tests.trainers.test_loop_processes import arrays, wait
from tests.trainers.translate.test_train import arguments
from trainers import metrics

MODEL = (
  '--model.encoder-layers', '1', '--model.decoder-layers', '1', '--model.model-dim', '16', '--model.num-heads', '2',
  '--model.mlp-dim', '20', '--model.max-length', '32', '--run.steps', '4', '--eval.sentences', '4',
)  # fmt: skip


def started(text, directory, *flags, devices=1):
  return tiny.start(*arguments(text, directory, *MODEL, *flags), module='trainers.translate', devices=devices)


def train(*args, **options):
  code, out = wait(started(*args, **options))
  assert code == 0, out


def train_on_two_hosts(text, directory, *flags):
  """Returns what each of the two processes printed."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    hosts = '--distributed.coordinator', f'127.0.0.1:{s.getsockname()[1]}', '--distributed.num-processes', '2'
  processes = [started(text, directory, *flags, *hosts, '--distributed.process-id', i) for i in '01']
  results = [wait(process) for process in processes]
  assert [code for code, _ in results] == [0, 0], results
  return [out for _, out in results]


@pytest.fixture(scope='module')
def alone(text, tmp_path_factory):
  """A run in a process with one device."""
  directory = tmp_path_factory.mktemp('runs') / 'alone'
  train(text, directory)
  return directory


def without_key_biases(params):
  """Returns the arrays by path. A bias of the keys changes no attention weight, so that Adam makes steps of its rounding errors."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {name: x for path, x in leaves if not (name := jax.tree_util.keystr(path)).endswith("['k']['bias']")}


def assert_same(one, other):
  names = 'loss', 'valid/loss', 'valid/bleu'
  rows = [[[row[name] for row in metrics.read(run) if name in row] for name in names] for run in (one, other)]
  assert [len(found) for found in rows[0]] == [4, 1, 1]
  for ours, theirs in zip(*rows):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  parameters = [without_key_biases(arrays(run)[1]) for run in (one, other)]
  chex.assert_trees_all_close(*parameters, atol=1e-4)


@pytest.mark.slow
def test_two_hosts_equal_one_device(text, alone, tmp_path):
  said = train_on_two_hosts(text, tmp_path / 'run', '--mesh.fsdp', '2')
  assert 'bleu' in said[0] and 'bleu' not in said[1]
  assert_same(tmp_path / 'run', alone)


@pytest.mark.slow
def test_a_mesh_of_eight_devices_equals_one_device(text, alone, tmp_path):
  """Check 12 of the specification of Markov translation."""
  train(text, tmp_path / 'run', '--mesh.fsdp', '2', '--mesh.tensor', '2', devices=8)
  assert_same(tmp_path / 'run', alone)


@pytest.mark.slow
def test_two_hosts_distil_once_and_equal_one_device(text, alone, tmp_path):
  distil = '--distill-from', str(alone), '--distill.beam-size', '2', '--data.max-length', '32'
  said = train_on_two_hosts(text, tmp_path / 'two', *distil)
  assert '160 of 160 sources with translations' in said[0] and 'distilling' not in said[1]
  train(text, tmp_path / 'one', *distil)
  assert (tmp_path / 'one' / 'distilled.jsonl').read_text() == (tmp_path / 'two' / 'distilled.jsonl').read_text()
  assert_same(tmp_path / 'two', tmp_path / 'one')
