"""Specs open logs with their items in one order; items that one side lacks are named."""

import json

import numpy as np
import pytest

from jaxlm.data import fetch, recommendation
from jaxlm.errors import DataError


@pytest.fixture
def log(tmp_path):
  rows = [(f'u{n % 3}', f'i{n % 5}', n) for n in range(15)]
  (tmp_path / 'log.csv').write_text('user,item,time\n' + ''.join(f'{u},{i},{t}\n' for u, i, t in rows))
  (tmp_path / 'items.jsonl').write_text('\n'.join(json.dumps({'id': f'i{n}', 'title': f'T{n}'}) for n in range(4)))
  return tmp_path


def test_items_are_in_the_order_of_the_logs_numbers(log):
  with open(log / 'items.jsonl', 'a') as file:
    file.write('\n{"id": "i4", "title": "T4"}\n{"id": "unused", "title": "Never seen"}')
  data = recommendation.open_data(str(log / 'log.csv'), items=str(log / 'items.jsonl'))
  assert data.items.ids == data.log.item_ids and len(data.items) == 5
  assert [title[1:] for title in data.items.titles] == [name[1:] for name in data.items.ids]


def test_without_a_table_ids_are_titles_or_the_log_has_them(log):
  assert (
    recommendation.open_data(str(log / 'log.csv')).items.titles
    == recommendation.open_data(str(log / 'log.csv')).items.ids
  )
  (log / 'b.csv').write_text('user,item,time,title\nu,x,1,Heat\nu,y,2,Alien\n')
  data = recommendation.open_data(str(log / 'b.csv'))
  assert dict(zip(data.items.ids, data.items.titles)) == {'x': 'Heat', 'y': 'Alien'}


def test_items_that_the_table_lacks_are_an_error_or_left_out(log):
  open_with = lambda missing: recommendation.open_data(
    str(log / 'log.csv'), items=str(log / 'items.jsonl'), missing=missing
  )
  with pytest.raises(DataError, match='1 of 5 items of the log are not in the table of items: i4'):
    open_with('error')
  data = open_with('skip')
  assert 'i4' not in data.log.item_ids and len(data.log) == 12
  (log / 'items.jsonl').write_text('{"id": "other", "title": "T"}')
  with pytest.raises(DataError, match='No item of the log is in the table of items'):
    open_with('skip')


def test_the_core_and_generated_data():
  data = recommendation.open_data('made-tiny', min_user=5, min_item=5)
  assert data.items.ids == data.log.item_ids and len(data.items.vectors) == len(data.items)
  assert np.bincount(data.log.items).min() >= 5
  with pytest.raises(DataError, match="Unknown generated data set 'made-smal'. Did you mean 'made-small'"):
    recommendation.open_data('made-smal')


def test_movielens_is_read_from_what_was_fetched(tmp_path, monkeypatch):
  (tmp_path / 'ml-100k.inter').write_text(
    'user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t4\t100\n1\t8\t2\t90\n'
  )
  (tmp_path / 'ml-100k.item').write_text(
    'item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n7\tHeat\t1995\tCrime\n8\tAlien\t1979\tHorror\n'
  )
  monkeypatch.setattr(fetch, 'verified', lambda name: tmp_path if name == 'movielens-100k' else None)
  data = recommendation.open_data('movielens-100k')
  assert dict(zip(data.items.ids, data.items.titles)) == {'7': 'Heat', '8': 'Alien'}
  assert 'Crime' in data.items.texts[data.items.ids.index('7')]
  monkeypatch.setattr(fetch, 'verified', lambda name: None)
  with pytest.raises(DataError, match='has not been fetched yet: python -m jaxlm.data.fetch movielens-100k'):
    recommendation.open_data('movielens-100k')


def test_movielens_of_tfds(tmp_path, monkeypatch):
  from jaxlm.data import tfds_source

  class Builder:
    class info:  # noqa: N801
      features = dict.fromkeys(('movie_id', 'movie_title', 'user_id', 'user_rating', 'timestamp'))
      splits = ('train',)
      name = 'movielens'

    def as_data_source(self, split):
      rows = [(b'7', b'Heat (1995)', b'1', 4.0, 100), (b'8', b'Alien (1979)', b'1', 3.0, 90)]

      class Source(list):
        def __getitems__(self, places):
          return [self[i] for i in places]

      return Source(dict(zip(self.info.features, row)) for row in rows)

  monkeypatch.setattr(tfds_source, 'builder', lambda name, download=False: Builder())
  data = recommendation.open_data('tfds:movielens/100k-ratings', least_rating=4)
  assert data.items.titles == ('Heat (1995)',) and data.log.user_ids == ('1',)
