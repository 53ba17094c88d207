"""Labelled texts are opened with their splits and columns, and a column that cannot be used is named."""

import json
import types

import numpy as np
import pytest

from jaxlm.data import fetch, tfds_source
from jaxlm.data.labelled import Fields, open_parts
from jaxlm.errors import DataError


@pytest.fixture
def write(tmp_path):
  def make(name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else '\n'.join(map(json.dumps, content)), encoding='utf-8')
    return str(path)

  return make


def rows(part):
  return [(row.text, row.labels) for row in part]


def test_a_part_is_held_out_by_the_letters_of_its_texts(write):
  texts = [f'{letter} is text {i}' for i in range(3) for letter in map(chr, range(97, 123))]
  path = write('a.csv', 'label,text\n' + ''.join(f'{i % 2},{text}\n' for i, text in enumerate(texts)))
  parts = open_parts(path, valid_fraction=0.3)
  train, valid = ({text for text, _ in rows(part)} for part in parts[:2])
  assert train | valid == set(texts) and not train & valid and 6 < len(valid) < 48 and parts.test is None
  # Texts that differ in a number alone stay together.
  assert not {text[0] for text in train} & {text[0] for text in valid}
  apart = open_parts(path, valid=path, test=path)
  assert rows(apart.train) == rows(apart.valid) == rows(apart.test) and len(rows(apart.test)) == 78


def test_several_columns_of_text_and_of_labels(write):
  examples = [
    {'title': ' One ', 'body': 'two', 'stars': 5, 'tags': ['x', 'y', 'x']},
    {'title': 'Three', 'body': None, 'stars': None, 'tags': []},
  ]
  fields = Fields(text=('title', 'body'), labels=('stars', 'tags'), multilabel=('tags',))
  expected = [('One two', (('5',), ('x', 'y'))), ('Three', (None, ()))]
  assert rows(open_parts(write('a.jsonl', examples), fields=fields, valid_fraction=1e-9).train) == expected
  table = write('a.csv', 'title,body,stars,tags\nOne,two,5,x| y |x\nThree,,,\n')
  part = open_parts(table, fields=fields, valid_fraction=1e-9).train
  assert rows(part) == expected and part.columns == ('stars', 'tags') and part.multilabel == (False, True)
  # As the paper's data sets come: the label first, then fields of text, without a header.
  plain = write('b.csv', '3,"a title",text\n4,"another",one\n')
  assert rows(open_parts(plain, fields=Fields(header=False), valid_fraction=1e-9).train)[0] == (
    'a title text',
    (('3',),),
  )


@pytest.mark.parametrize(
  'fields, message',
  [
    (Fields(labels=('topik',)), "Unknown column of --data.labels, in .*a.csv, line 2, 'topik'. Did you mean 'topic'"),
    (Fields(labels=('text',)), "The column 'text' is named twice"),
    (Fields(labels=('topic', 'topic')), "The column 'topic' is named twice"),
    (Fields(text=('topic',), labels=('topic',)), "The column 'topic' is named twice"),
    (Fields(), 'which column is the label is not known. There are topic, text, other'),
    (Fields(labels=('topic',), multilabel=('other',)), "Unknown label column of --data.multilabel 'other'"),
  ],
)
def test_columns_that_cannot_be_used_are_named(write, fields, message):
  path = write('a.csv', 'topic,text,other\na,one,b\n')
  with pytest.raises(DataError, match=message):
    open_parts(path, fields=fields)


def test_labels_of_the_wrong_form_are_named(write):
  with pytest.raises(DataError, match=r"line 1: the label in 'label' is \['a', 'b'\].* pass --data.multilabel label"):
    rows(open_parts(write('a.jsonl', [{'text': 'x', 'label': ['a', 'b']}]), valid_fraction=1e-9).train)
  with pytest.raises(DataError, match="line 1: the labels in 'label' are 3; expected a list"):
    rows(
      open_parts(
        write('b.jsonl', [{'text': 'x', 'label': 3}]),
        fields=Fields(multilabel=('label',), labels=('label',)),
        valid_fraction=1e-9,
      ).train
    )
  with pytest.raises(DataError, match="line 1: the column 'text' is int, not text"):
    rows(open_parts(write('d.jsonl', [{'text': 5, 'label': 'a'}]), valid_fraction=1e-9).train)
  with pytest.raises(DataError, match='holds no text'):
    open_parts(write('e.csv', 'label,text\n'))
  with pytest.raises(DataError, match="line 2: Unknown column 'label'"):
    rows(open_parts(write('f.jsonl', [{'text': 'x', 'label': 'a'}, {'text': 'y'}]), valid_fraction=1e-9).train)


def test_named_sources_bring_their_splits(tmp_path, monkeypatch):
  header = 'Category\tText\nd\tstring\nclass\t\n\t\n'
  for split in ('train', 'test'):
    (tmp_path / f'reuters-r8-{split}.tab').write_text(f'{header}earn\t{split} text\nacq\tother\n')
  monkeypatch.setattr(fetch, 'verified', lambda name: tmp_path if name == 'r8' else None)
  parts = open_parts('r8', valid_fraction=1e-9)
  assert rows(parts.train)[0] == ('train text', (('earn',),)) and rows(parts.test)[0][0] == 'test text'
  assert open_parts('r8:train', valid_fraction=1e-9).test is None
  with pytest.raises(DataError, match='has not been fetched yet: python -m jaxlm.data.fetch r52'):
    open_parts('r52')
  with pytest.raises(DataError, match="Unknown split of r8 'tset'. Did you mean 'test'"):
    open_parts('r8:tset')


def test_labels_of_tfds_have_their_names(monkeypatch):
  class Text:
    pass

  class Names:
    names = ('World', 'Sports')

    def int2str(self, n):
      return self.names[n]

  info = types.SimpleNamespace(
    features={'title': Text(), 'description': Text(), 'label': Names()}, splits=('train', 'test')
  )
  examples = [
    {'title': b'A', 'description': b'b c', 'label': np.int64(1)},
    {'title': b'D', 'description': b'', 'label': 0},
  ]
  monkeypatch.setattr(tfds_source, 'builder', lambda name, download: types.SimpleNamespace(info=info))
  monkeypatch.setattr(
    tfds_source, 'examples', lambda builder, split: iter(examples if split == 'train' else examples[:1])
  )
  parts = open_parts('tfds:ag_news_subset', valid_fraction=1e-9)
  assert rows(parts.train) == [('A b c', (('Sports',),)), ('D', (('World',),))] and len(rows(parts.test)) == 1
