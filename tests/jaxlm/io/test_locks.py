import pytest

from jaxlm.errors import DataError
from jaxlm.io import locks


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path):
  path = tmp_path / 'new' / 'out.lock'
  with locks.exclusive(path, DataError('taken')):
    with pytest.raises(DataError, match='taken'):
      with locks.exclusive(path, DataError('taken')):
        pass
    assert path.exists()
  assert not path.exists()
  path.write_text('of a killed process')
  with locks.exclusive(path, DataError('taken')):
    pass
  with pytest.raises(KeyError):
    with locks.exclusive(path, DataError('taken')):
      path.unlink()  # Somebody cleans up: a new file may be another one's lock.
      path.write_text('')
      raise KeyError
  assert path.exists()
