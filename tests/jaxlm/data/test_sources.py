"""Sources: what a spec names is read, twice alike; what is wrong is named with its file and line."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from jaxlm import errors
from jaxlm.data import sources, tfds_source


def read(*args, **options) -> list[str]:
  return list(sources.documents(*args, **options))


def lines(texts, field='text') -> str:
  return ''.join(json.dumps({field: text}) + '\n' for text in texts)


def test_importing_the_data_rooms_is_light():
  heavy = ('jax', 'grain', 'tensorflow_datasets', 'pyarrow', 'sentencepiece', 'tokenizers', 'jinja2')
  code = (
    'import sys\n'
    'from jaxlm.data import chat, corpus, fetch, packing, pairs, sources, tokenizers\n'
    f'print([name for name in {heavy} if name in sys.modules])'
  )
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_embedded_text_is_english_distinct_and_the_same_each_time():
  source = sources.documents('embedded')
  texts = list(source)
  size = sum(len(text.encode()) for text in texts)
  assert 1e6 < size < 4e6 and len(texts) > 300
  assert len(set(texts)) == len(texts) and list(source) == texts
  code = (
    'import hashlib\nfrom jaxlm.data import sources\n'
    'print(hashlib.sha256("\\n".join(sources.documents("embedded")).encode()).hexdigest())'
  )
  import hashlib

  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == hashlib.sha256('\n'.join(texts).encode()).hexdigest()


def test_texts_are_labelled_with_their_file(tmp_path):
  for name in ('a/train.jsonl', 'b/train.jsonl', 'b/more.jsonl'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(lines([f'of {name}', '']))
  whole = sources.documents(str(tmp_path))
  labelled = list(sources.labelled(whole))
  assert [text for text, _ in labelled] == list(whole)
  assert dict(labelled) == {
    'of a/train.jsonl': str(tmp_path / 'a/train.jsonl'),
    'of b/more.jsonl': 'more.jsonl',
    'of b/train.jsonl': str(tmp_path / 'b/train.jsonl'),
  }
  assert list(sources.labelled(sources.documents(str(tmp_path / 'a')))) == [('of a/train.jsonl', 'train.jsonl')]
  assert next(sources.labelled(sources.documents('embedded')))[1] == 'embedded'
  assert list(sources.labelled(['made here'])) == [('made here', '')]
  (tmp_path / 'empty.jsonl').write_text('')
  with pytest.raises(errors.DataError, match='empty.jsonl.* holds no text'):
    list(sources.labelled(sources.documents(str(tmp_path / 'empty.jsonl'))))


def test_each_kind_of_file(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  (tmp_path / 'a.txt').write_text('Plain text.\r\nTwo lines.\n', newline='')
  (tmp_path / 'b.jsonl').write_text(lines(['one', '', 'zwei ü']) + '\n')
  with gzip.open(tmp_path / 'c.jsonl.gz', 'wt') as file:
    file.write(lines(['packed']))
  (tmp_path / 'd.json').write_text(json.dumps([{'text': 'in a list'}, {'text': 'as well'}], indent=1))
  pq.write_table(pa.table({'text': ['column', None, 'store'], 'n': [1, 2, 3]}), tmp_path / 'e.parquet')
  with gzip.open(tmp_path / 'f.md.gz', 'wt') as file:
    file.write('\ufeff# Title')
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'sub' / 'g.rst').write_text('Last.')
  (tmp_path / 'ignored.bin').write_bytes(b'\xff')
  (tmp_path / '.hidden.txt').write_text('hidden')
  expected = {
    'a.txt': ['Plain text.\nTwo lines.'],
    'b.jsonl': ['one', 'zwei ü'],
    'c.jsonl.gz': ['packed'],
    'd.json': ['in a list', 'as well'],
    'e.parquet': ['column', 'store'],
    'f.md.gz': ['# Title'],
    'sub/g.rst': ['Last.'],
  }
  for name, texts in expected.items():
    assert read(str(tmp_path / name)) == texts
  assert read(str(tmp_path)) == [text for texts in expected.values() for text in texts]
  assert read(f'{tmp_path}/a.txt, {tmp_path}/b.jsonl') == expected['a.txt'] + expected['b.jsonl']
  assert read(f'{tmp_path}/*.jsonl*') == expected['b.jsonl'] + expected['c.jsonl.gz']
  assert read(f'{tmp_path}/**/*.rst') == expected['sub/g.rst']


def test_a_file_with_a_comma_in_its_name(tmp_path):
  (tmp_path / 'a,b.txt').write_text('both')
  assert read(str(tmp_path / 'a,b.txt')) == ['both']


def test_another_field(tmp_path):
  (tmp_path / 'a.jsonl').write_text(lines(['x'], 'content'))
  assert read(str(tmp_path / 'a.jsonl'), field='content') == ['x']
  with pytest.raises(errors.DataError, match=r"a.jsonl, line 1: Unknown field 'contents'. Did you mean 'content'"):
    read(str(tmp_path / 'a.jsonl'), field='contents')


def test_long_text_is_cut_at_blank_lines_and_loses_nothing_else(tmp_path):
  paragraphs = [f'Paragraph {i}.\n' + 'words ' * 50 for i in range(40)]
  (tmp_path / 'a.txt').write_text('\n\n'.join(paragraphs))
  cut = read(str(tmp_path / 'a.txt'), document=1000)
  assert len(cut) > 8 and '\n\n'.join(cut) == '\n\n'.join(paragraphs)
  assert read(str(tmp_path / 'a.txt'), document=0) == ['\n\n'.join(paragraphs)]
  (tmp_path / 'b.txt').write_text('no blank line\n' * 1000)
  assert max(map(len, read(str(tmp_path / 'b.txt'), document=1000))) < 2100


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('a.jsonl', b'{"text": "x"}\n{"text": \n', 'a.jsonl, line 2 is not readable JSON'),
    ('a.jsonl', b'{"text": "x"}\n\n[1]\n', "a.jsonl, line 3: expected an object with the field 'text', found list"),
    ('a.jsonl', b'{"text": 5}\n', "a.jsonl, line 1: the field 'text' is int, not text"),
    ('a.jsonl', b'{"text": "\\ud800"}\n', 'a.jsonl, line 1: .* not valid Unicode'),
    ('a.json', b'[{"text": "x"}, ', 'a.json is not readable JSON'),
    ('a.json', b'[{"text": "x"}, {"txt": "y"}]', "a.json, element 1: Unknown field 'text'. Did you mean 'txt'"),
    ('a.txt', 'ok\ncaf\xe9\n'.encode('latin1'), 'a.txt, line 2: byte 0xe9 at column 4 is not UTF-8'),
    ('a.txt', b'\n\n', 'holds no text'),
    ('a.jsonl', b'', 'holds no text'),
    ('a.txt.gz', gzip.compress(b'many words ' * 1000, mtime=0)[:-20], 'a.txt.gz cannot be read'),
    ('a.txt.gz', b'not gzip', 'a.txt.gz cannot be read'),
    ('a.parquet', b'PAR1 no', 'a.parquet is not a readable Parquet file'),
    ('a.bin', b'', 'unknown kind'),
  ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.DataError, match=message):
    read(str(tmp_path / name))


def test_a_missing_column_lists_the_columns(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  pq.write_table(pa.table({'content': ['x']}), tmp_path / 'a.parquet')
  with pytest.raises(errors.DataError, match="Unknown column 'text'.*Known: content"):
    read(str(tmp_path / 'a.parquet'))


def test_a_missing_path_suggests_the_nearest(tmp_path):
  (tmp_path / 'train.jsonl').write_text(lines(['x']))
  with pytest.raises(errors.DataError, match=r'no file or folder.*Did you mean .*train.jsonl'):
    sources.documents(str(tmp_path / 'trian.jsonl'))
  with pytest.raises(errors.DataError, match="Did you mean 'embedded'"):
    sources.documents('embeded')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.DataError, match='holds no file of a known kind'):
    sources.documents(str(tmp_path / 'empty'))
  with pytest.raises(errors.DataError, match='No file of a known kind matches'):
    sources.documents(str(tmp_path / '*.parquet'))
  with pytest.raises(errors.DataError, match='between two commas'):
    sources.documents('embedded,,embedded')


# ---- held-out documents ----


def test_the_split_is_a_property_of_each_text(tmp_path):
  texts = [f'document number {i}' for i in range(1000)]
  (tmp_path / 'a.jsonl').write_text(lines(texts))
  (tmp_path / 'b.jsonl').write_text(lines([*reversed(texts), 'one more', *texts[:10]]))
  a, b = (sources.split(sources.documents(str(tmp_path / name)), 0.1) for name in ('a.jsonl', 'b.jsonl'))
  train, valid = map(set, a)
  assert not train & valid and train | valid == set(texts) and 60 < len(valid) < 140
  assert set(b[1]) - {'one more'} == valid and set(b[0]) - {'one more'} == train
  assert list(a[0]) == [text for text in texts if text in train]  # again, and in order
  wider = set(sources.split(sources.documents(str(tmp_path / 'a.jsonl')), 0.2)[1])
  assert valid < wider


def test_an_empty_part_says_what_to_do(tmp_path):
  (tmp_path / 'a.txt').write_text('one document')
  train, valid = sources.split(sources.documents(str(tmp_path / 'a.txt')), 0.001)
  assert list(train) == ['one document']
  with pytest.raises(errors.DataError, match='None of the 1 documents .* larger fraction'):
    list(valid)
  with pytest.raises(ValueError, match='valid_fraction=1'):
    sources.split(['a'], 1)


def test_a_fingerprint_changes_with_the_content_and_the_options(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_text('some')
  make = lambda **options: sources.fingerprint(sources.documents(str(file), **options))
  before = make()
  assert before == make() != make(document=10)
  parts = sources.split(sources.documents(str(file)), 0.5)
  assert len({before, *map(sources.fingerprint, parts)}) == 3
  file.write_text('other')
  assert make() != before


# ---- TFDS ----


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A dataset of 300 texts prepared as ArrayRecord, and its folder."""
  tfds = pytest.importorskip('tensorflow_datasets', reason='tensorflow-datasets is not installed')
  pytest.importorskip('array_record', reason='array_record is not installed (it exists for Linux only)')

  class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = tfds.features.FeaturesDict({'text': tfds.features.Text(), 'label': np.int32})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(300), 'test': self._generate_examples(3)}

    def _generate_examples(self, n):
      for i in range(n):
        yield i, {'text': f'tëxt {i}', 'label': i}

  folder = tmp_path_factory.mktemp('tfds')
  TinyTexts(data_dir=str(folder), file_format='array_record').download_and_prepare()
  return folder


def test_tfds_texts_are_read_without_tensorflow(prepared):
  expected = {f'tëxt {i}' for i in range(300)}
  texts = read('tfds:tiny_texts', data_dir=prepared)
  assert len(texts) == 300 and set(texts) == expected and read('tfds:tiny_texts', data_dir=prepared) == texts
  assert len(read('tfds:tiny_texts:test', data_dir=prepared)) == 3
  assert read('tfds:tiny_texts:train[:10%]', data_dir=prepared) == texts[:30]
  assert len(read('tfds:tiny_texts:1.0.0:train', data_dir=prepared)) == 300
  assert 'tensorflow' not in sys.modules
  assert sources.fingerprint(sources.documents('tfds:tiny_texts', data_dir=prepared)) != sources.fingerprint(
    sources.documents('tfds:tiny_texts:test', data_dir=prepared)
  )


@pytest.mark.parametrize(
  'spec, field, message',
  [
    ('tfds:tiny_text', 'text', "Unknown TFDS dataset 'tiny_text'. Did you mean 'tiny_texts'"),
    ('tfds:tiny_texts:validation', 'text', "Unknown split of tiny_texts 'validation'.*Known: test, train"),
    ('tfds:tiny_texts', 'txt', "Unknown field of TFDS dataset tiny_texts 'txt'. Did you mean 'text'"),
    ('tfds:tiny_texts', 'label', "the field 'label' is int, not text"),
    ('tfds:ag_news_subset', 'text', r'(?s)is not prepared in .*builder\("ag_news_subset", .*download_and_prepare'),
    ('tfds:yelp_polarity_reviews', 'text', 'is not prepared in'),  # an older builder: found through its module
    ('tfds:', 'text', 'is not of the form tfds:NAME'),
  ],
)
def test_what_is_wrong_with_tfds_is_named(prepared, spec, field, message):
  with pytest.raises(errors.DataError, match=message):
    read(spec, field=field, data_dir=prepared)


def test_a_tfrecord_preparation_says_how_to_prepare_again(prepared, tmp_path):
  import shutil

  shutil.copytree(prepared, tmp_path / 'tfds')
  info = tmp_path / 'tfds' / 'tiny_texts' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"'))
  with pytest.raises(errors.DataError, match='stored as tfrecord.*\n.*file_format="array_record"'):
    read('tfds:tiny_texts', data_dir=tmp_path / 'tfds')


def test_each_older_builder_has_its_module():
  pytest.importorskip('tensorflow_datasets', reason='tensorflow-datasets is not installed')
  import importlib.util
  from pathlib import Path

  root = Path(importlib.util.find_spec('tensorflow_datasets').origin).parent
  for name, module in tfds_source.BUILDERS.items():
    place = root.joinpath(*module.split('.'))
    assert place.is_dir() or place.with_suffix('.py').is_file(), (name, module)
