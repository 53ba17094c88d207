"""Arrays are computed once, continued after an interruption, and refused where they are other ones."""

import ml_dtypes
import numpy as np
import pytest

from jaxlm.errors import DataError
from jaxlm.io.kept_arrays import kept
from jaxlm.io.locks import exclusive

VALUES = {'a': np.arange(12.0, dtype=np.float32).reshape(6, 2), 'b': np.arange(6).astype(ml_dtypes.bfloat16)}
ORDER = [[4, 0], [1, 5], [3, 2]]  # Pieces need not follow each other in the array.


def pieces(seen, stop=None):
  def made(names, done):
    for number, rows in enumerate(ORDER[done:], done):
      if number == stop:
        raise KeyboardInterrupt
      seen.append((number, *names))
      yield rows, {name: VALUES[name][rows] for name in names}

  return made


def test_arrays_are_computed_once_and_continued(tmp_path):
  seen = []
  with pytest.raises(KeyboardInterrupt):
    kept(tmp_path, VALUES, pieces(seen, stop=2))
  found = kept(tmp_path, VALUES, pieces(seen))
  assert seen == [(0, 'a', 'b'), (1, 'a', 'b'), (2, 'a', 'b')]
  for name, x in VALUES.items():
    assert found[name].dtype == x.dtype and (np.asarray(found[name]) == x).all()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.npy', 'b.npy']
  kept(tmp_path, VALUES, None)  # They are there.


def test_what_is_missing_alone_is_computed_and_other_unfinished_arrays_are_begun_again(tmp_path):
  seen = []
  kept(tmp_path, {'a': VALUES['a']}, pieces([]))
  with pytest.raises(KeyboardInterrupt):
    kept(tmp_path, {'b': VALUES['b']}, pieces([], stop=1))
  (tmp_path / 'a.npy').unlink()
  kept(tmp_path, VALUES, pieces(seen))
  assert [number for number, *_ in seen] == [0, 1, 2]


def test_what_cannot_be_used_is_refused(tmp_path):
  kept(tmp_path, VALUES, pieces([]))
  with pytest.raises(DataError, match=r'a.npy has shape \(6, 2\), and \(5, 2\) is wanted'):
    kept(tmp_path, {'a': VALUES['a'][:5]}, pieces([]))
  with exclusive(tmp_path / 'lock', RuntimeError()), pytest.raises(DataError, match='written by another process'):
    kept(tmp_path, {'c': VALUES['a']}, pieces([]))
  (tmp_path / 'file').touch()
  with pytest.raises(DataError, match='file'):
    kept(tmp_path / 'file', VALUES, pieces([]))
