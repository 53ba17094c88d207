"""Records of every kind of file are read, and whatever is wrong with one is named with its file and line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxlm.data import labelled_files
from jaxlm.errors import DataError

ROWS = [{'label': 'a', 'text': 'one, "two"\nthree'}, {'label': 'b', 'text': 'four'}]


def write(path, content):
  path.write_text(content, encoding='utf-8')
  return path


def read(path, **options):
  return [example for example, _ in labelled_files.records(path, **options)]


def test_tables_json_and_parquet_hold_the_same_records(tmp_path):
  table = 'label,text\n\na,"one, ""two""\nthree"\nb,four\n'
  assert read(write(tmp_path / 'a.csv', table)) == ROWS
  (tmp_path / 'a.csv.gz').write_bytes(gzip.compress(table.encode()))
  assert read(tmp_path / 'a.csv.gz') == ROWS
  assert read(write(tmp_path / 'a.jsonl', '\n'.join(map(json.dumps, ROWS)))) == ROWS
  pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / 'a.parquet')
  assert read(tmp_path / 'a.parquet') == ROWS
  flat = [{'label': 'a', 'text': 'one "two'}, {'label': 'b', 'text': 'four'}]
  assert read(write(tmp_path / 'a.tsv', 'label\ttext\na\tone "two\nb\tfour\n')) == flat
  assert read(write(tmp_path / 'b.csv', 'a,one,more\n'), header=False) == [{'0': 'a', '1': 'one', '2': 'more'}]


def test_the_header_lines_of_orange_are_no_records(tmp_path):
  """As in 20 Newsgroups and Reuters: names, types, flags, and a blank line, which would be a class of its own."""
  whole = write(tmp_path / 'a.tab', 'Category\tText\nd\tstring\nclass\t\n\t\nearn\tone\nacq\ttwo\n')
  assert read(whole) == [{'Category': 'earn', 'Text': 'one'}, {'Category': 'acq', 'Text': 'two'}]
  plain = write(tmp_path / 'b.tab', 'Category\tText\nearn\tone\n')
  assert read(plain) == [{'Category': 'earn', 'Text': 'one'}]


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('a.csv', 'text,label,text\nx,y,z\n', "a.csv, line 1: 2 columns have the name 'text'"),
    ('a.csv', 'label,text\na,one,two\n', r'a.csv, line 2: found 3 columns, and the first line has 2 \(label, text\)'),
    ('a.tsv', 'label\ttext\na\n', r'a.tsv, line 2: found 1 columns'),
    ('a.jsonl', '{"text": "x"}\n[1]\n', 'a.jsonl, line 2: expected an object with a text'),
    ('a.csv', b'label,text\na,\xff\n', r'a.csv, line 2: byte 0xff .* is not UTF-8'),
  ],
)
def test_bad_lines_are_named(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(DataError, match=message):
    read(path)


def test_files_that_are_not_there_or_of_an_unknown_kind_are_named(tmp_path):
  write(tmp_path / 'a.csv', 'x')
  write(tmp_path / 'b.tsv', 'x')
  write(tmp_path / 'c.txt', 'x')
  assert labelled_files.find(f'{tmp_path}/*sv') == [tmp_path / 'a.csv', tmp_path / 'b.tsv']
  assert labelled_files.find(f'{tmp_path}/b.tsv, {tmp_path}/a.csv') == [tmp_path / 'b.tsv', tmp_path / 'a.csv']
  with pytest.raises(DataError, match='c.txt is of an unknown kind'):
    labelled_files.find(str(tmp_path / 'c.txt'))
  with pytest.raises(DataError, match="There is no file .*d.csv' with labelled texts"):
    labelled_files.find(str(tmp_path / 'd.csv'))
