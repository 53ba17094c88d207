"""Which sub-layers are skipped, and the file that keeps such sets."""

import concurrent.futures
import itertools
import json

import numpy as np
import pytest

from decoders.swift.sets import SkipSet, check_writable, load, save, uniform
from jaxlm.errors import DataError


def test_sets_round_trip():
  L, skip = 7, SkipSet((5, 1), (2,))
  assert skip == SkipSet((1, 5), (2,)) and len(skip) == 3 and len(SkipSet()) == 0
  assert skip.vector(L).tolist() == [1, 0, 0, 0, 1, 0, 1, 0, 0, 0]
  assert np.argwhere(~skip.keep(L)).tolist() == [[0, 1], [0, 5], [1, 2]]
  for vector in itertools.product([False, True], repeat=6):
    assert SkipSet.of(vector, 5).vector(5).tolist() == list(vector)
  assert uniform(40) == SkipSet(tuple(range(1, 38, 2)), tuple(range(1, 38, 2)))
  assert uniform(4) == SkipSet((1,), (1,)) and uniform(7).attention == (1, 3, 5)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: SkipSet((0,)).check(6), 'attention names layer 0: the first and the last of 6'),
    (lambda: SkipSet((), (5,)).keep(6), 'mlp names layer 5: the first and the last'),
    (lambda: SkipSet((), (6,)).vector(6), 'mlp names layer 6; the model has layers 0 to 5'),
    (lambda: SkipSet((-1,)).check(6), 'attention names layer -1'),
    (lambda: SkipSet((2, 2)), 'attention names layer 2 twice'),
    (lambda: SkipSet().check(3), '3 layers is too shallow'),
    (lambda: uniform(3), '3 layers is too shallow'),
    (lambda: SkipSet.of([True] * 9, 6), 'have 8 sub-layers'),
  ],
)
def test_sets_that_cannot_be_skipped_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_writers_wait_for_each_other(tmp_path):
  path, keys = tmp_path / 'sets.json', [f'{i}/task' for i in range(40)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda key: save(path, key, SkipSet((1,)), 6), keys))
  assert sorted(json.loads(path.read_text())) == sorted(keys)


def test_a_path_that_cannot_be_written_is_noticed_before(tmp_path):
  check_writable(tmp_path / 'new' / 'sets.json')
  with pytest.raises(OSError, match='cannot be written to .*it is a folder'):
    check_writable(tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError):
    check_writable(tmp_path / 'file' / 'sets.json')


def test_file_keeps_sets_of_several_models_and_tasks(tmp_path):
  path, one, two = tmp_path / 'new' / 'sets.json', SkipSet((1, 3), (2,)), SkipSet((), (4,))
  assert load(path, 'a/code', 6) is None
  save(path, 'a/code', one, 6, {'model_dim': 8, 'windows': (0, 4)}, score=0.9)
  save(path, 'b/chat', two, 9)
  assert load(path, 'a/code', 6, {'model_dim': 8, 'windows': (0, 4)}) == (one, 0.9)
  assert load(path, 'b/chat', 9) == (two, None)
  assert load(path, 'a/chat', 6) is None and json.loads(path.read_text())['a/code']['score'] == 0.9
  save(path, 'b/chat', one, 9)
  assert load(path, 'b/chat', 9) == (one, None) and [p.name for p in path.parent.iterdir()] == ['sets.json']
  with pytest.raises(ValueError, match=r'"num_layers": 9.*another|another.*"num_layers": 9.*"num_layers": 6'):
    load(path, 'b/chat', 6)
  with pytest.raises(ValueError, match='"model_dim": 8.*this one is.*"model_dim": 16'):
    load(path, 'a/code', 6, {'model_dim': 16, 'windows': (0, 4)})
  with pytest.raises(ValueError, match='first and the last'):
    save(path, 'b/chat', SkipSet((0,)), 9)


@pytest.mark.parametrize('text', ['{"a": ', '[1]', '\x80'])
def test_broken_file_is_named_and_left_alone(tmp_path, text):
  path = tmp_path / 'sets.json'
  path.write_bytes(text.encode('latin1'))
  with pytest.raises(DataError, match='sets.json is not a JSON file of skip sets'):
    load(path, 'a', 6)
  with pytest.raises(DataError, match='sets.json'):
    save(path, 'a', SkipSet(), 6)
  assert path.read_bytes() == text.encode('latin1')


def test_every_field_of_a_saved_set_is_checked(tmp_path):
  path = tmp_path / 'sets.json'
  save(path, 'a', SkipSet((1, 3), (2,)), 6, score=0.5)
  whole = path.read_text()
  for name in ('attention', 'mlp', 'model', 'score'):
    for value in (None, True, 'text', '12', -1, 2**40, 0.5, float('nan'), [], [True], [1.0], ['1'], [[1]], [-1], [2**70], {}, {'a': 1}):  # fmt: skip
      saved = json.loads(whole)
      saved['a'][name] = value
      path.write_text(json.dumps(saved))
      if (name, value) in (('score', None), ('score', 0.5)) or (value == [] and name in ('attention', 'mlp')):
        assert load(path, 'a', 6) == (
          SkipSet(*(tuple(saved['a'][x]) for x in ('attention', 'mlp'))),
          saved['a']['score'],
        )
        continue
      with pytest.raises(ValueError, match='sets.json'):
        load(path, 'a', 6)
    saved = json.loads(whole)
    del saved['a'][name]
    path.write_text(json.dumps(saved))
    if name != 'score':
      with pytest.raises(DataError, match=f"no skip set under 'a', but .*{name} is None"):
        load(path, 'a', 6)


def test_entry_that_is_no_set_is_named(tmp_path):
  path = tmp_path / 'sets.json'
  path.write_text('{"a": {"attention": [1]}, "b": 3}')
  for key in 'ab':
    with pytest.raises(DataError, match=f"no skip set under '{key}'"):
      load(path, key, 6)
