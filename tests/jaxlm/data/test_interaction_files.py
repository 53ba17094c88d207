"""Logs and item tables of all kinds of files give the same rows; bad rows are named with file and line."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxlm.data import interaction_files
from jaxlm.data.interaction_files import Columns
from jaxlm.errors import DataError

ROWS = [('u1', 'a', 4.0, 10.0), ('u1', 'b', 2.0, 20.0), ('u2', 'a', 5.0, 30.0)]
ITEMS = [('a', 'Heat (1995)', 'Crime'), ('b', 'Toy Story', 'Animation Comedy')]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('logs')
  table = lambda head, rows, sep: head + '\n' + '\n'.join(sep.join(map(str, row)) for row in rows) + '\n'
  (folder / 'log.csv').write_text(table('userId,movieId,rating,timestamp', ROWS, ','))
  (folder / 'log.inter').write_text(table('user_id:token\titem_id:token\trating:float\ttimestamp:float', ROWS, '\t'))
  names = ('reviewerID', 'asin', 'overall', 'unixReviewTime')
  (folder / 'log.jsonl').write_text('\n'.join(json.dumps(dict(zip(names, row))) for row in ROWS))
  columns = dict(zip(('user', 'item', 'rating', 'time'), map(list, zip(*ROWS))))
  pq.write_table(pa.table(columns), folder / 'log.parquet')
  (folder / 'items.item').write_text(table('item_id:token\ttitle:token_seq\tclass:token_seq', ITEMS, '\t'))
  (folder / 'items.csv').write_text(table('id,name,genre', ITEMS, ','))
  return folder


@pytest.mark.parametrize('kind', ['csv', 'inter', 'jsonl', 'parquet'])
def test_all_kinds_of_logs_give_the_same_rows(files, kind):
  found = interaction_files.read_log(str(files / f'log.{kind}'))
  assert list(zip(found.users, found.items, found.times)) == [(u, i, t) for u, i, _, t in ROWS]
  rated = interaction_files.read_log(str(files / f'log.{kind}'), least_rating=4)
  assert rated.times == [10.0, 30.0]


@pytest.mark.parametrize('name', ['items.item', 'items.csv'])
def test_item_tables_have_titles_and_texts(files, name):
  found = interaction_files.read_items(str(files / name))
  assert found.ids == ('a', 'b') and found.titles == ('Heat (1995)', 'Toy Story')
  assert found.texts == ('Heat (1995) Crime', 'Toy Story Animation Comedy')


def test_columns_can_be_named_and_several_files_are_one_log(files, tmp_path):
  (tmp_path / 'x.csv').write_text('who,what,when\nu9,z,2024-01-02\nu9,y,2024-01-01T12:00:00\n')
  spec = f'{files / "log.csv"}'
  with pytest.raises(DataError, match='which column is the user is not known. There are who, what, when'):
    interaction_files.read_log(str(tmp_path / 'x.csv'))
  named = Columns(user='who', item='what', time='when')
  found = interaction_files.read_log(str(tmp_path / 'x.csv'), named)
  assert found.items == ['z', 'y'] and found.times[0] > found.times[1]
  with pytest.raises(DataError, match="Unknown column of --data.user, .*'wo'. Did you mean 'who'"):
    interaction_files.read_log(str(tmp_path / 'x.csv'), Columns(user='wo', item='what'))
  assert len(interaction_files.read_log(f'{spec},{spec}')) == 6


def test_dates_and_moments_of_parquet_are_the_times_of_iso_dates(tmp_path):
  (tmp_path / 'x.csv').write_text('user,item,date\nu,a,2024-01-02\nu,b,2024-01-03\n')
  expected = interaction_files.read_log(str(tmp_path / 'x.csv')).times
  days = [datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)]
  for times in (days, [datetime.datetime(day.year, day.month, day.day) for day in days]):
    pq.write_table(pa.table({'user': ['u', 'u'], 'item': ['a', 'b'], 'date': times}), tmp_path / 'x.parquet')
    assert interaction_files.read_log(str(tmp_path / 'x.parquet')).times == expected


def test_without_times_the_lines_are_in_order(tmp_path):
  (tmp_path / 'x.csv').write_text('user,item\nu,a\nu,b\n')
  assert interaction_files.read_log(str(tmp_path / 'x.csv')).times == [0.0, 1.0]


@pytest.mark.parametrize(
  'row, message',
  [
    ('u,,1,1', "line 3: the column 'item' is empty, so the interaction has no item"),
    (',a,1,1', "line 3: the column 'user' is empty"),
    ('u,a,1,soon', "line 3: the column 'time' is 'soon'; expected a number"),
    ('u,a,nan,1', "line 3: the column 'rating' is 'nan'; expected a number"),
    ('u,a,1', 'line 3: found 3 columns'),
  ],
)
def test_bad_rows_are_named(tmp_path, row, message):
  (tmp_path / 'x.csv').write_text(f'user,item,rating,time\nu,a,1,1\n{row}\n')
  with pytest.raises(DataError, match=message):
    interaction_files.read_log(str(tmp_path / 'x.csv'), least_rating=0)


def test_empty_logs_and_bad_identifiers_are_refused(tmp_path):
  (tmp_path / 'x.csv').write_text('user,item,rating\nu,a,1\n')
  with pytest.raises(DataError, match='holds no interactions with a rating of at least 3'):
    interaction_files.read_log(str(tmp_path / 'x.csv'), least_rating=3)
  ids = tmp_path / 'ids.json'
  ids.write_text(json.dumps({'a': ['<a_1>', '<b_2>'], 'b': [7, 8]}))
  assert interaction_files.read_ids(ids) == {'a': ('<a_1>', '<b_2>'), 'b': ('7', '8')}
  ids.write_text(json.dumps({'a': []}))
  with pytest.raises(DataError, match=r"identifier of 'a' is \[\]; expected a list of tokens"):
    interaction_files.read_ids(ids)
  ids.write_text('[1, 2]')
  with pytest.raises(DataError, match='holds no identifiers; expected an object'):
    interaction_files.read_ids(ids)
