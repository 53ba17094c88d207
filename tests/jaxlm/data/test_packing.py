"""Corpora and batches: built whole or not at all; a batch depends on (corpus, seed, step) and nothing else."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxlm import errors
from jaxlm.data import corpus as corpus_lib
from jaxlm.data import packing, sources
from jaxlm.data.corpus import TokenCorpus, tokenize
from jaxlm.data.tokenizers import ByteTokenizer

LENGTHS = [5, 1, 17, 3, 2, 40, 1, 1, 9, 23, 4, 31, 6]  # documents of these sizes, 143 tokens


def numbered() -> TokenCorpus:
  """Token i is the number i, so a window shows where it was cut."""
  ends = np.cumsum(LENGTHS)
  return TokenCorpus.from_documents([range(e - n, e) for e, n in zip(ends, LENGTHS)])


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# ---- batches ----


def test_a_batch_depends_on_the_step_alone():
  make = lambda seed=3: packing.make_batches(numbered(), batch_size=3, length=7, seed=seed)
  a, b = make(), make()
  forwards = [a.batch(step) for step in range(30)]
  backwards = [b.batch(step) for step in reversed(range(30))][::-1]
  for x, y in zip(forwards, backwards):
    assert_equal(x, y)
    assert {n: (v.dtype.name, v.shape) for n, v in x.items()} == {
      'tokens': ('int32', (3, 7)),
      'targets': ('int32', (3, 7)),
      'segments': ('int32', (3, 7)),
      'positions': ('int32', (3, 7)),
      'mask': ('float32', (3, 7)),
    }
  assert any((make(4).batch(i)['tokens'] != forwards[i]['tokens']).any() for i in range(3))


def test_batches_are_the_same_in_another_process():
  code = (
    'from tests.jaxlm.data.test_packing import *\n'
    'print(packing.make_batches(numbered(), batch_size=3, length=7, seed=3).batch(11)["tokens"].tolist())'
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  expected = packing.make_batches(numbered(), batch_size=3, length=7, seed=3).batch(11)['tokens'].tolist()
  assert run.stdout.strip().splitlines()[-1] == str(expected)


@pytest.mark.parametrize('length', [7, 10, 71])
def test_an_epoch_is_each_window_once_and_each_epoch_has_its_own_order(length):
  batches = packing.make_batches(numbered(), batch_size=1, length=length, seed=5)
  n = batches.windows
  assert n == (sum(LENGTHS) - 1) // length
  epochs = [[int(batches.batch(e * n + i)['tokens'][0, 0]) for i in range(n)] for e in range(5)]
  assert all(sorted(epoch) == [w * length for w in range(n)] for epoch in epochs)
  if n > 10:
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_neighbouring_seeds_do_not_share_epochs():
  order = lambda seed: [
    tuple(packing.make_batches(numbered(), batch_size=20, length=7, seed=seed).window_indices(e)) for e in range(4)
  ]
  assert len({*order(0), *order(1), *order(2)}) == 12


def test_batch_borders_need_not_be_epoch_borders():
  batches = packing.make_batches(numbered(), batch_size=3, length=7, seed=1)
  assert batches.windows % 3
  seen = [w for step in range(batches.windows) for w in batches.window_indices(step)]
  assert [seen.count(w) for w in range(batches.windows)] == [3] * batches.windows


def test_processes_read_their_own_rows():
  batches = packing.make_batches(numbered(), batch_size=6, length=7, seed=1)
  whole = batches.batch(4)
  parts = [batches.batch(4, slice(2 * p, 2 * p + 2)) for p in range(3)]
  assert_equal({n: np.concatenate([part[n] for part in parts]) for n in whole}, whole)
  with pytest.raises(ValueError, match='selects none'):
    batches.batch(0, slice(6, 9))


def test_rows_agree_with_brute_force():
  corpus = numbered()
  document = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
  first = np.asarray(corpus.offsets[:-1])[document]
  for length in (1, 6, 10, 142):
    for w in range((len(corpus) - 1) // length):
      row = packing.window(corpus, w, length, 'documents')
      at = np.arange(w * length, (w + 1) * length)
      np.testing.assert_array_equal(row['tokens'], at)
      np.testing.assert_array_equal(row['targets'], at + 1)
      seen = list(dict.fromkeys(document[at]))
      np.testing.assert_array_equal(row['segments'], [1 + seen.index(d) for d in document[at]])
      np.testing.assert_array_equal(row['positions'], at - np.maximum(first[at], at[0]))
      np.testing.assert_array_equal(row['mask'], document[at] == document[at + 1])


def test_concat_is_one_text_per_row():
  row = packing.make_batches(numbered(), batch_size=2, length=9, mode='concat').batch(0)
  assert (row['segments'] == 1).all() and (row['mask'] == 1).all()
  np.testing.assert_array_equal(row['positions'], np.tile(np.arange(9), (2, 1)))


def test_a_corpus_shorter_than_a_window_names_both_numbers():
  with pytest.raises(errors.DataError, match='143 tokens.*length . 1 = 151.*at most 142'):
    packing.make_batches(numbered(), batch_size=2, length=150)
  assert packing.make_batches(numbered(), batch_size=2, length=142).windows == 1
  with pytest.raises(errors.DataError, match='holds 0 tokens'):
    packing.make_batches(TokenCorpus.from_documents([]), batch_size=2, length=5)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='length=0'):
    packing.make_batches(numbered(), batch_size=2, length=0)
  with pytest.raises(ValueError, match="Did you mean 'documents'"):
    packing.make_batches(numbered(), batch_size=2, length=5, mode='document')
  with pytest.raises(ValueError, match='step=-1'):
    packing.make_batches(numbered(), batch_size=2, length=5).batch(-1)


def test_evaluation_sees_each_target_once():
  corpus = numbered()
  for length, batch_size in ((8, 3), (10, 4), (71, 2), (200, 3)):
    batches = packing.eval_batches(corpus, batch_size=batch_size, length=length, mode='concat')
    rows = list(batches)
    assert len(rows) == len(batches) and all(row['tokens'].shape == (batch_size, length) for row in rows)
    targets = np.concatenate([row['targets'][row['mask'] > 0] for row in rows])
    np.testing.assert_array_equal(targets, np.arange(1, len(corpus)))
    assert all((row['segments'][row['mask'] == 0] == 0).all() for row in rows)
    for a, b in zip(rows, batches):
      assert_equal(a, b)
  assert len(packing.eval_batches(corpus, batch_size=3, length=8, max_batches=2)) == 2
  with pytest.raises(IndexError):
    batches.batch(len(batches))


# ---- prefetching ----


def test_prefetched_batches_are_the_batches_and_resume_anywhere():
  batches = packing.make_batches(numbered(), batch_size=2, length=7, seed=9)
  with packing.prefetch(batches, 4, 12, transform=lambda b: b['tokens'] * 2) as ahead:
    found = list(ahead)
  np.testing.assert_array_equal(found, [batches.batch(step)['tokens'] * 2 for step in range(4, 12)])
  with packing.prefetch(batches, 7, rows=slice(1, 2)) as ahead:
    for step in range(7, 20):
      assert_equal(next(ahead), batches.batch(step, slice(1, 2)))


class Broken:
  def batch(self, step):
    if step == 3:
      raise errors.DataError('step 3 is broken')
    return step


def test_an_error_arrives_after_the_batches_before_it():
  ahead = packing.prefetch(Broken())
  assert [next(ahead) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(errors.DataError, match='step 3 is broken'):
    next(ahead)
  with pytest.raises(StopIteration):
    next(ahead)


def threads() -> int:
  return sum(thread.name == 'jaxlm-prefetch' for thread in threading.enumerate())


def test_the_thread_ends_when_closed_or_forgotten():
  batches = packing.make_batches(numbered(), batch_size=2, length=7)
  ahead = packing.prefetch(batches)
  next(ahead)
  assert threads() == 1
  ahead.close()
  assert threads() == 0 and list(ahead) == []
  ahead = packing.prefetch(batches)
  del ahead
  deadline = time.time() + 5
  while threads() and time.time() < deadline:
    time.sleep(0.02)
  assert threads() == 0


# ---- corpora ----

TEXTS = ['one', 'two words', '', 'três', 'x' * 300]


@pytest.fixture
def source(tmp_path):
  file = tmp_path / 'texts.jsonl'
  write(file, TEXTS)
  return lambda: sources.documents(str(file))


def write(file, texts):
  import json

  file.write_text('\n'.join(json.dumps({'text': text}) for text in texts))


def built(folder) -> list[str]:
  return sorted(p.name for p in folder.iterdir())


class Counting(ByteTokenizer):
  calls = 0

  def encode_batch(self, texts):
    Counting.calls += 1
    return super().encode_batch(texts)


@pytest.fixture
def counting():
  Counting.calls = 0
  return Counting()


def test_a_corpus_holds_the_documents_and_their_ends(source, tmp_path):
  t = ByteTokenizer()
  corpus = tokenize(source(), t, tmp_path / 'c', bos=True, progress=False)
  texts = [text for text in TEXTS if text]
  assert corpus.num_documents == 4 and corpus.tokens.dtype == np.uint16 and corpus.offsets.dtype == np.int64
  assert [corpus.document(i).tolist() for i in range(4)] == [t.encode(text, bos=True, eos=True) for text in texts]
  assert len(corpus) == corpus.offsets[-1] == corpus.meta['tokens'] and isinstance(corpus.tokens, np.memmap)
  bare = tokenize(source(), t, tmp_path / 'c', eos=False, progress=False)
  assert bare.document(1).tolist() == t.encode('two words')
  assert len(built(tmp_path / 'c')) == 2


def test_a_large_vocabulary_takes_four_bytes(source, tmp_path):
  class Large(ByteTokenizer):
    vocab_size = 2**16 + 1

    def encode_batch(self, texts):
      return [[2**16] * len(text) for text in texts]

  corpus = tokenize(source(), Large(), tmp_path / 'c', progress=False)
  assert corpus.tokens.dtype == np.uint32 and corpus.document(0).tolist() == [2**16] * 3 + [257]


def test_a_corpus_is_built_once_and_again_when_what_it_depends_on_changes(source, counting, tmp_path):
  make = lambda **options: tokenize(source(), counting, tmp_path / 'c', progress=False, **options)
  make()
  assert counting.calls == 1 and np.array_equal(make().tokens, make().tokens) and counting.calls == 1
  make(bos=True)
  assert counting.calls == 2
  write(tmp_path / 'texts.jsonl', [*TEXTS, 'more'])
  assert make().num_documents == 5 and counting.calls == 3
  counting.fingerprint = 'another'
  make()
  assert counting.calls == 4
  make(rebuild=True)
  assert counting.calls == 5


def test_parts_of_a_split_are_corpora_of_their_own(tmp_path):
  write(tmp_path / 'a.jsonl', [f'document {i}' for i in range(200)])
  train, valid = corpus_lib.corpora(
    str(tmp_path / 'a.jsonl'), ByteTokenizer(), valid_fraction=0.2, cache_dir=tmp_path / 'c', progress=False
  )
  assert train.num_documents + valid.num_documents == 200 and 20 < valid.num_documents < 60


def test_an_interrupted_build_leaves_nothing_that_is_taken_for_whole(source, tmp_path):
  class Interrupted(ByteTokenizer):
    def encode_batch(self, texts):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    tokenize(source(), Interrupted(), tmp_path / 'c', progress=False)
  assert built(tmp_path / 'c') == []
  assert tokenize(source(), ByteTokenizer(), tmp_path / 'c', progress=False).num_documents == 4


def test_a_killed_build_is_cleared_away_and_done_again(source, tmp_path):
  code = (
    'import os, sys\n'
    'from jaxlm.data import sources, tokenizers\n'
    'from jaxlm.data.corpus import tokenize\n'
    'class Killed(tokenizers.ByteTokenizer):\n'
    '  def encode_batch(self, texts):\n'
    '    os.kill(os.getpid(), 9)\n'
    'tokenize(sources.documents(sys.argv[1]), Killed(), sys.argv[2], progress=False)\n'
  )
  run = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'texts.jsonl'), str(tmp_path / 'c')])
  assert run.returncode == -9 and len(built(tmp_path / 'c')) == 1
  assert tokenize(source(), ByteTokenizer(), tmp_path / 'c', progress=False).num_documents == 4
  assert len(built(tmp_path / 'c')) == 1 and not built(tmp_path / 'c')[0].startswith('.')


@pytest.mark.parametrize('name', ['tokens.bin', 'offsets.bin', 'meta.json'])
def test_a_truncated_cache_is_named_and_built_again(source, tmp_path, name):
  make = lambda: tokenize(source(), ByteTokenizer(), tmp_path / 'c', progress=False)
  whole = np.array(make().tokens)
  file = tmp_path / 'c' / built(tmp_path / 'c')[0] / name
  os.truncate(file, file.stat().st_size - 5)
  with pytest.raises(errors.DataError, match=name):
    TokenCorpus.open(file.parent)
  with pytest.warns(UserWarning, match=name):
    np.testing.assert_array_equal(make().tokens, whole)


def test_an_iterable_needs_a_key(tmp_path):
  with pytest.raises(ValueError, match='key='):
    tokenize(['a'], ByteTokenizer(), tmp_path)
  assert tokenize(['a'], ByteTokenizer(), tmp_path, key='just a', progress=False).num_documents == 1
  with pytest.raises(errors.DataError, match='holds no text'):
    tokenize([], ByteTokenizer(), tmp_path, key='nothing', progress=False)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
  monkeypatch.delenv('JAXLM_CACHE', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'x'))
  assert corpus_lib.cache_folder() == tmp_path / 'x' / 'jaxlm'
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert corpus_lib.cache_folder() == tmp_path / '.cache' / 'jaxlm'
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'mine'))
  assert corpus_lib.cache_folder() == tmp_path / 'mine'
  tokenize(['a'], ByteTokenizer(), key='a', progress=False)
  assert len(built(tmp_path / 'mine' / 'tokens')) == 1


def test_a_fraction_is_the_same_windows_in_every_epoch_and_for_every_seed():
  corpus = TokenCorpus.from_documents([[i] for i in range(1, 82)])
  parts = {}
  for seed in (0, 1):
    batches = packing.make_batches(corpus, batch_size=5, length=4, seed=seed, fraction=0.5)
    epochs = [[i for step in range(2 * e, 2 * e + 2) for i in batches.window_indices(step)] for e in range(4)]
    assert batches.windows == 10 and all(len(set(epoch)) == 10 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4  # Each in an order of its own.
    parts[seed] = set(map(frozenset, epochs))
    assert batches.used_windows.tolist() == sorted(epochs[0])
  assert parts[0] == parts[1] and len(parts[0]) == 1
