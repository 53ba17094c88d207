"""Files as people have them: packed, without line ends, in other encodings, damaged."""

import bz2
import gzip
import json
import lzma
import os

import pytest

from jaxlm import errors
from jaxlm.data import corpus, reading, sources
from jaxlm.data.tokenizers import ByteTokenizer

TEXT = 'one\r\nzwei ü\n\n漢字\n' * 9


def read(path, **options) -> list[str]:
  return list(sources.documents(str(path), **options))


def zstd(data):
  import pyarrow as pa

  return pa.compress(data, codec='zstd', asbytes=True)


@pytest.mark.parametrize(
  'suffix, pack', [('gz', gzip.compress), ('bz2', bz2.compress), ('xz', lzma.compress), ('zst', zstd)]
)
def test_packed_text_is_read_and_damage_is_named(tmp_path, suffix, pack):
  data = TEXT.encode()
  (tmp_path / 'plain.txt').write_bytes(data + data)
  file = tmp_path / f'a.txt.{suffix}'
  file.write_bytes(pack(data) + pack(data))  # Two members, as programs that append make them.
  assert read(file) == read(tmp_path / 'plain.txt')
  packed = bytearray(pack(os.urandom(9000).hex().encode()))
  inside = packed[:300] + bytes(50) + packed[350:]  # pyarrow writes no checksum that would show it, unlike zstd.
  for damaged in (packed[:-400], b'no packed file at all', *([] if suffix == 'zst' else [inside])):
    file.write_bytes(bytes(damaged))
    with pytest.raises(errors.DataError, match=rf'a\.txt\.{suffix} cannot be read \(after line 0\)'):
      read(file)


def test_long_lines_come_in_pieces_that_add_up(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, 'PIECE', 5)
  path = tmp_path / 'a.txt'
  path.write_bytes(b'\xef\xbb\xbf' + TEXT.encode() + 'ü漢😀'.encode() * 7 + b'\r')
  assert ''.join(text for _, text in reading.numbered_pieces(path)) == TEXT.replace('\r\n', '\n') + 'ü漢😀' * 7 + '\r'
  path.write_bytes(b'abc\ndefghijk' + b'\xe9!')
  with pytest.raises(errors.DataError, match='line 2: byte 0xe9 at column 9 is not UTF-8'):
    list(reading.numbered_pieces(path))


def test_a_corpus_of_one_line_is_cut_between_words(tmp_path):
  words = [f'word{i}' for i in range(4000)]
  (tmp_path / 'a.txt').write_text(' '.join(words))
  cut = read(tmp_path / 'a.txt', document=500)
  assert ' '.join(cut).split(' ') == words and max(map(len, cut)) <= 1000 and len(cut) > 30
  (tmp_path / 'b.txt').write_text('字' * 9000)
  assert ''.join(read(tmp_path / 'b.txt', document=500)) == '字' * 9000
  assert read(tmp_path / 'a.txt', document=0) == [' '.join(words)]
  train, valid = sources.split(sources.documents(str(tmp_path / 'a.txt'), document=500), 0.2)
  assert sorted([*train, *valid]) == sorted(cut)


def test_a_line_without_end_takes_little_memory(tmp_path):
  import tracemalloc

  with gzip.open(tmp_path / 'a.txt.gz', 'wb', compresslevel=1) as file:
    for _ in range(20):
      file.write(b'a few words ' * 100_000)
  tracemalloc.start()
  assert sum(len(text) for text in sources.documents(str(tmp_path / 'a.txt.gz'))) > 23e6
  assert tracemalloc.get_traced_memory()[1] < 4e6
  tracemalloc.stop()


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16le', 'utf-16be', 'utf-32'])
@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl'])
def test_other_encodings_are_named_with_the_command_that_converts(tmp_path, encoding, name):
  (tmp_path / name).write_bytes('{"text": "hello"}\n'.encode(encoding))
  with pytest.raises(errors.DataError, match=rf'iconv -f {encoding} -t utf-8 {name}'):
    read(tmp_path / name)


def test_the_command_for_a_packed_file_is_for_what_is_in_it(tmp_path):
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress('caf\xe9'.encode('latin1')))
  with pytest.raises(errors.DataError, match=r'unpack it, and iconv -f latin1 -t utf-8 a\.txt > new\.txt'):
    read(tmp_path / 'a.txt.gz')


def test_single_zeros_do_not_make_a_file_utf_16(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'words and words\x00 and words\n')
  assert read(tmp_path / 'a.txt') == ['words and words\x00 and words']


def test_fields_inside_fields_and_null(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows = [{'meta': {'text': 'deep'}}, {'meta': None}, {'meta': {'text': None}}, {'meta': {'text': 'two'}}]
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'a.parquet')
  for name in ('a.jsonl', 'a.parquet'):
    assert read(tmp_path / name, field='meta.text') == ['deep', 'two']
  (tmp_path / 'b.jsonl').write_text('{"meta.text": "flat", "meta": {"text": "deep"}}\n')
  assert read(tmp_path / 'b.jsonl', field='meta.text') == ['flat']
  with pytest.raises(errors.DataError, match="Unknown field 'txt'. Did you mean 'text'"):
    read(tmp_path / 'b.jsonl', field='meta.txt')
  # pyarrow also returns columns such as text.lang to who asks for text.
  pq.write_table(
    pa.Table.from_arrays([pa.array(['en']), pa.array(['hello'])], names=['text.lang', 'text']), tmp_path / 'b.parquet'
  )
  assert read(tmp_path / 'b.parquet') == ['hello']


def test_damaged_parquet_files_name_file_and_row(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  path = tmp_path / 'a.parquet'
  bad = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b'\0\0\0\0\1\0\0\0\3\0\0\0'), pa.py_buffer(b'a\xff\xfe')]
  )
  pq.write_table(pa.table({'text': bad}), path)
  with pytest.raises(errors.DataError, match=r'a\.parquet, row 1: the text is not UTF-8'):
    read(path)
  pq.write_table(
    pa.table({'text': [f'{i} words' * 9 for i in range(5000)]}), path, use_dictionary=False, data_page_size=1000
  )
  data = bytearray(path.read_bytes())
  middle = len(data) // 3
  data[middle : middle + 40] = bytes(x ^ 0x5A for x in data[middle : middle + 40])
  path.write_bytes(bytes(data))
  with pytest.raises(errors.DataError, match=r'a\.parquet is not a readable Parquet file'):
    read(path)


def test_json_that_is_nested_too_deep_is_named(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n{"text": "a", "x": ' + '[' * 100_000 + ']' * 100_000 + '}\n')
  with pytest.raises(errors.DataError, match=r'a\.jsonl, line 2 is not readable JSON: it is nested too deep'):
    read(tmp_path / 'a.jsonl')


def test_names_of_any_length_and_of_nobody(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.txt').write_text('x')
  assert read(','.join(['a.txt'] * 900)) == ['x'] * 900
  for name in ('~nobody-of-this-name/a.txt', 'a\0b.txt', 'b' * 300 + '.txt'):
    with pytest.raises(errors.DataError, match='no file or folder'):
      read(name)
  (tmp_path / 'link.txt').symlink_to('nowhere')
  with pytest.raises(errors.DataError, match="'link.txt' is neither a file nor a folder, or a link to nothing"):
    read('link.txt')


def test_what_a_folder_or_pattern_leaves_aside_is_said(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'out').mkdir()
  for name in ('in/a.txt', 'in/b.csv', 'in/.hidden', 'out/c.txt'):
    (tmp_path / name).write_text('x')
  (tmp_path / 'in' / 'linked').symlink_to(tmp_path / 'out')
  for spec in (tmp_path / 'in', tmp_path / 'in' / '*'):
    with pytest.warns(
      UserWarning, match=r'1 files are read. Left aside: 1 other files \(b.csv\) and 1 linked folders.*linked'
    ):
      assert read(spec) == ['x']
  (tmp_path / 'in' / 'a.txt').unlink()
  with pytest.raises(errors.DataError, match=r'holds no file of a known kind .* 1 linked folders'):
    read(tmp_path / 'in')


def test_a_cache_that_cannot_be_written_names_the_variable_that_moves_it(tmp_path):
  (tmp_path / 'a.txt').write_text('some words')
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.DataError, match='cannot be written: .*JAXLM_CACHE'):
    corpus.tokenize(sources.documents(str(tmp_path / 'a.txt')), ByteTokenizer(), tmp_path / 'file', progress=False)
